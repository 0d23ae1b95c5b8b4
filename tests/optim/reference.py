"""The optimizers a second time, in float64 NumPy: `trajectory`, a specification in code."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
from optim.networks import Array, Block, Network, Record

Pair = tuple[float, float]


@dataclass(frozen=True)
class Options:
    """Hyper-parameters; the defaults are LNGD's, statistics_every and inverse_every apart.

    rate None is the method's own: "layerwise" for lngd and lngd-lr, "fixed" (α_l = 1) for the others. damping
    None is too: ν = (1e-5, 1e-2) for the lngd family, λ = 0.03 for the others.
    """

    lr: float = 0.1
    schedule: Sequence[float] | None = None  # factors of both learning rates, one a step
    momentum: float = 0.9
    momentum_on: str = "update"  # or "gradient"
    weight_decay: float = 0.004
    weight_decay_mode: str = "decoupled"  # or "coupled"
    decay: float = 0.95
    statistics_every: int = 1
    inverse_every: int = 1
    damping: float | Pair | dict[str, Pair] | None = None  # (ν₁, ν₂), {"input": …, "output": …}, or λ
    rate: str | None = None
    rate_damping: float = 1e-3
    max_rate: float | None = None
    kl_clip: float = np.inf
    loss_reduction: str = "mean"  # or "sum"
    last: str = "identity"  # or "categorical"
    other_lr: float | None = None  # None: lr
    drawn: Sequence[Array | None] | None = None  # labels of the statistics, an array a step; None: the data's


def trajectory(
    network: Network, batches: Sequence[tuple[Array, Array]], method: str, options: Options | None = None
) -> list[dict[str, Array]]:
    """The parameters after each step from the network's own, which stays as it is.

    Step k = 0, 1, … on batch k at the weights W_k, for each block:

        k divisible by statistics_every:  moving averages, weight `decay` on the old, start at the first
        k divisible by inverse_every:     factors inverted, with the averages of this very step
        ∇  = mean of V_n over the batch with the data's labels; G = ∇ (+ wd W if coupled)
        D  = preconditioned G             (momentum_on="gradient": of m ← τ m + G)
        α  = ⟨D, ∇⟩ / ((1/N) Σ_n ⟨D, V_n⟩² + μ), at most max_rate; 1 if fixed
        c  = min(1, √(κ / Σ_blocks lr² |α| ⟨D, G⟩)), with the G that D is made of
        ζ  = −lr α c D                    (momentum_on="update": m ← τ m + ζ, and m is the step)
        W ← W + ζ or m (− lr wd W if decoupled, W as before the step, lr without α)

    Choices where the source is silent:

    - m starts at 0, one for each layer; decoupled decay is not in it.
    - α may be negative when D is not of ∇ alone (coupled decay, momentum on the gradient): no floor.
    - max_rate caps the layer-wise rate only, and from above only.
    - `schedule` multiplies lr and other_lr; it is in ζ, so a step keeps the rate of the time it was made.
    - Affine parameters: the same momentum in the same place with D = ∇, α = 1, rate other_lr, no decay.
    - loss_reduction="sum": the gradient that arrives is N times ∇ and is divided by N, affine ones too.
    - `drawn` labels make g of the statistics for lngd-lr, kfac, ekfac and tkfac; lngd needs none, ngplus
      takes the data's always. All statistics are at W_k, before the step.
    """
    o, network = options or Options(), deepcopy(network)
    curvature = {
        name: METHODS[method](o) for name, layer in network.layers.items() if isinstance(layer, Block)
    }
    layerwise = (o.rate or ("layerwise" if method in ("lngd", "lngd-lr") else "fixed")) == "layerwise"
    momenta = {name: np.zeros_like(W) for name, W in network.weights.items()}
    history = []
    for k, (x, y) in enumerate(batches):
        factor = 1.0 if o.schedule is None else o.schedule[k]
        labels = y if o.drawn is None or method == "ngplus" else o.drawn[k]
        learn(network, curvature, k, x, labels, o)
        gradients = network.backward(x, y)
        plans = {
            name: plan(rule, network.parameters[name].W, gradients[name], momenta[name], layerwise, o)
            for name, rule in curvature.items()
        }
        length = sum((factor * o.lr) ** 2 * abs((alpha_D * G).sum()) for alpha_D, G in plans.values())
        clip = min(1.0, float(np.sqrt(o.kl_clip / length))) if length > 0 else 1.0
        for name, layer in network.parameters.items():
            if name in curvature:
                zeta = step(clip * plans[name][0], momenta[name], factor * o.lr, o)
                decayed = factor * o.lr * o.weight_decay if o.weight_decay_mode == "decoupled" else 0.0
                layer.W = layer.W + zeta - decayed * layer.W
            else:
                rate = factor * (o.lr if o.other_lr is None else o.other_lr)
                layer.W = layer.W + momentum_step(momenta[name], mean_gradient(gradients[name], o), rate, o)
        history.append(network.weights)
    return history


def learn(
    network: Network, curvature: dict[str, "Curvature"], k: int, x: Array, labels: Array, o: Options
) -> None:
    """Statistics and inverses of step k, where they are due."""
    statistics, inverses = k % o.statistics_every == 0, k % o.inverse_every == 0
    if not (statistics or inverses):
        return
    for name, record in network.records(x, labels, o.last).items():
        if statistics:
            curvature[name].update(record)
        if inverses:
            curvature[name].invert(record)


def plan(rule: "Curvature", W: Array, V: Array, m: Array, layerwise: bool, o: Options) -> tuple[Array, Array]:
    """α D and the G that D is made of; V [n, m, d]: gradients of the samples; changes m if it is in G."""
    gradient = mean_gradient(V, o)
    G = gradient + o.weight_decay * W if o.weight_decay_mode == "coupled" else gradient
    if o.momentum_on == "gradient":
        m[:] = o.momentum * m + G
        G = m
    D = rule.direction(G)
    return (layer_rate(D, gradient, V, o) if layerwise else 1.0) * D, G


def step(alpha_D: Array, m: Array, lr: float, o: Options) -> Array:
    """What is added to W, decoupled decay apart; changes m where that is of the updates."""
    if o.momentum_on == "gradient":
        return -lr * alpha_D
    m[:] = o.momentum * m - lr * alpha_D
    return m


def momentum_step(m: Array, gradient: Array, lr: float, o: Options) -> Array:
    """What is added to a parameter of no block; changes m."""
    if o.momentum_on == "gradient":
        m[:] = o.momentum * m + gradient
        return -lr * m
    m[:] = o.momentum * m - lr * gradient
    return m


def mean_gradient(V: Array, o: Options) -> Array:
    """∇h from the gradient of the user's loss, which is the mean or the sum over the batch."""
    return V.mean(0) if o.loss_reduction == "mean" else V.sum(0) / len(V)


def layer_rate(D: Array, gradient: Array, V: Array, o: Options) -> float:
    """α_l (eq. 12 and 13), with the empirical Fisher of the batch."""
    slopes = np.array([(D * V_n).sum() for V_n in V])
    rate = (D * gradient).sum() / ((slopes**2).mean() + o.rate_damping)
    return rate if o.max_rate is None else min(rate, o.max_rate)


@dataclass
class Curvature(ABC):
    """Moving averages of one block, the inverses made of them, and the direction D of a gradient."""

    o: Options
    averages: dict[str, Array] = field(default_factory=dict)

    @abstractmethod
    def moments(self, record: Record) -> dict[str, Array]:
        """What is averaged: means over the samples of a batch."""

    @abstractmethod
    def invert(self, record: Record) -> None:
        """What D needs, from the averages; `record` is the current batch's."""

    @abstractmethod
    def direction(self, G: Array) -> Array:
        """D [m, d] of a gradient G [m, d]."""

    def update(self, record: Record) -> None:
        for name, new in self.moments(record).items():
            old = self.averages.get(name)
            self.averages[name] = new if old is None else self.o.decay * old + (1 - self.o.decay) * new

    @property
    def scalar_damping(self) -> float:
        return 0.03 if self.o.damping is None else self.o.damping


class LNGD(Curvature):
    """D = (Ψ + λ_Ψ I)⁻¹ G (Φ + λ_Φ I)⁻¹, each λ = clip(trace / size, ν₁, ν₂).

    Φ = E[Σ‖φ'‖² a aᵀ] and Ψ_jj = E[Σ‖a‖² φ'_j²] / tr Φ, diagonal, sums over positions. The numerators
    are averaged, undamped; tr Φ of the average divides at inversion. Ψ = 1/m where tr Φ = 0.
    """

    def signal(self, record: Record) -> Array:
        return record.slope

    def moments(self, record: Record) -> dict[str, Array]:
        n, a, w = len(record.a), record.a, self.signal(record)
        return {
            "input": np.einsum("ntj,ntd,nte->de", w**2, a, a) / n,
            "output": np.einsum("ntd,ntj->j", a**2, w**2) / n,
        }

    def invert(self, record: Record) -> None:
        phi, total = self.averages["input"], np.trace(self.averages["input"])
        m = len(self.averages["output"])
        psi = self.averages["output"] / total if total > 0 else np.full(m, 1 / m)
        pairs = self.o.damping or (1e-5, 1e-2)
        inputs, outputs = (pairs["input"], pairs["output"]) if isinstance(pairs, dict) else (pairs, pairs)
        self.right = np.linalg.inv(phi + np.clip(total / len(phi), *inputs) * np.eye(len(phi)))
        self.left = 1 / (psi + np.clip(psi.sum() / m, *outputs))

    def direction(self, G: Array) -> Array:
        return self.left[:, None] * G @ self.right


class LNGDlr(LNGD):
    """LNGD with g of the loss in the place of φ'; products of different positions are dropped, as in LNGD."""

    def signal(self, record: Record) -> Array:
        return record.g


class KFAC(Curvature):
    """D = (B + (√λ/π) I)⁻¹ G (A + π√λ I)⁻¹, A = E[Σ a aᵀ], B = E[Σ g gᵀ]/T, π² = (tr A/d) / (tr B/m).

    π is held to [1e-2, 1e2] only where a trace is 0 (0/0 counts as 1): elsewhere a bound would make D depend
    on how a scale is shared between A and B.
    """

    def moments(self, record: Record) -> dict[str, Array]:
        n, T = record.g.shape[:2]
        return {
            "input": np.einsum("ntd,nte->de", record.a, record.a) / n,
            "output": np.einsum("nti,ntj->ij", record.g, record.g) / (n * T),
        }

    def invert(self, record: Record) -> None:
        A, B = self.factors()
        pi, root = balance(A, B), np.sqrt(self.scalar_damping)
        self.right = np.linalg.inv(A + pi * root * np.eye(len(A)))
        self.left = np.linalg.inv(B + root / pi * np.eye(len(B)))

    def factors(self) -> tuple[Array, Array]:
        return self.averages["input"], self.averages["output"]

    def direction(self, G: Array) -> Array:
        return self.left @ G @ self.right


def balance(A: Array, B: Array) -> float:
    """π of the factored damping."""
    inputs, outputs = np.trace(A) / len(A), np.trace(B) / len(B)
    if inputs > 0 and outputs > 0:
        return np.sqrt(inputs / outputs)
    return 1.0 if inputs == outputs else (1e2 if inputs > 0 else 1e-2)


class TKFAC(KFAC):
    """KFAC's damping and direction with (δP, Q), positions independent.

    δP = E[Σ‖g‖² a aᵀ] and E[Σ‖a‖² g gᵀ] are averaged; at inversion Q is the second over tr δP, or I/m where
    that is 0.
    """

    def moments(self, record: Record) -> dict[str, Array]:
        n, a, g = len(record.a), record.a, record.g
        return {
            "input": np.einsum("ntj,ntd,nte->de", g**2, a, a) / n,
            "output": np.einsum("ntd,nti,ntj->ij", a**2, g, g) / n,
        }

    def factors(self) -> tuple[Array, Array]:
        P, Q = self.averages["input"], self.averages["output"]
        return P, Q / np.trace(P) if np.trace(P) > 0 else np.eye(len(Q)) / len(Q)


class EKFAC(KFAC):
    """D = U_B [(U_Bᵀ G U_A) / (S + λ)] U_Aᵀ, S = E[(U_Bᵀ V U_A)²], V summed over positions.

    U_A and U_B are the eigenvectors of KFAC's averages. A new basis is made at inverse steps if the averages
    changed since the last one; S then is the current batch's alone (with its labels, also where this step is
    no statistics step). At other statistics steps S is averaged, with the same `decay`, in the basis that
    stands.

    D needs no order or sign of eigenvectors, but in an eigenspace of several dimensions (the null space of A
    after batches of fewer than d samples) it depends on their choice once a later V has a part there.
    """

    stale = True

    def update(self, record: Record) -> None:
        super().update(record)
        self.stale = True
        if hasattr(self, "S"):
            self.S = self.o.decay * self.S + (1 - self.o.decay) * self.squares(record)

    def invert(self, record: Record) -> None:
        if self.stale:
            (_, self.U_A), (_, self.U_B) = (np.linalg.eigh(factor) for factor in self.factors())
            self.S, self.stale = self.squares(record), False

    def squares(self, record: Record) -> Array:
        return np.mean([(self.U_B.T @ V @ self.U_A) ** 2 for V in record.V], axis=0)

    def direction(self, G: Array) -> Array:
        return self.U_B @ ((self.U_B.T @ G @ self.U_A) / (self.S + self.scalar_damping)) @ self.U_A.T


class NGPlus(Curvature):
    """D = (E[V Vᵀ] + λI)⁻¹ G if m ≤ d, else G (E[Vᵀ V] + λI)⁻¹; V summed over positions, data's labels."""

    def moments(self, record: Record) -> dict[str, Array]:
        m, d = record.V.shape[1:]
        return {"gram": np.mean([V @ V.T if m <= d else V.T @ V for V in record.V], axis=0)}

    def invert(self, record: Record) -> None:
        self.on_left = record.V.shape[1] <= record.V.shape[2]
        gram = self.averages["gram"]
        self.inverse = np.linalg.inv(gram + self.scalar_damping * np.eye(len(gram)))

    def direction(self, G: Array) -> Array:
        return self.inverse @ G if self.on_left else G @ self.inverse


METHODS: dict[str, type[Curvature]] = {
    "lngd": LNGD,
    "lngd-lr": LNGDlr,
    "lngd-sample": LNGD,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "tkfac": TKFAC,
    "ngplus": NGPlus,
}
