"""Batches by name with masks of tokens and labels: a padded batch is its samples, one by one."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import fisherlab as fl
from fisherlab.errors import InputError, InputTypeError

V, T, LENGTHS = 7, 5, (3, 5, 2)
TOKENS = torch.randint(1, V, (3, T), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()


class Reader(nn.Module):
    """A network of tokens in the manner of transformers: tokens look at all others, or at those before.

    Args:
        head: "next" and "same" give a softmax a token, whose own loss reads labels so; "pooled" one a sample.
        careless: whether the mean over positions takes padding too.
    """

    def __init__(self, head: str, *, careless: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(V, 4)
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, V)
        self._head, self._careless = head, careless
        self.double()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **flags: Any,
    ) -> dict[str, Tensor]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embedding(input_ids)
        seen = mask.bool()[:, None, :]
        if self._head == "next":
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            seen = seen & before | torch.eye(x.shape[1], dtype=torch.bool)  # padding at the front sees itself
        scores = (self.query(x) @ x.mT).masked_fill(~seen, -torch.inf)
        x = x + torch.tanh(scores.softmax(-1) @ self.value(x))
        if self._head == "pooled":
            weights = torch.ones_like(x) if self._careless else mask.unsqueeze(-1).to(x)
            return {"logits": self.out((x * weights).sum(1) / weights.sum(1))}
        found = {"logits": self.out(x)}
        if labels is not None:
            logits, labels = found["logits"], labels
            if self._head == "next":
                logits, labels = logits[:, :-1], labels[:, 1:]
            found["loss"] = cross_entropy(logits.flatten(0, 1), labels.flatten())
        return found


def batch(*, labels: bool) -> dict[str, Any]:
    own = {"labels": TOKENS.masked_fill(MASK == 0, -100)} if labels else {}
    return {"input_ids": TOKENS, "attention_mask": MASK, **own, "use_cache": False, "head_mask": None}


def alone(n: int, *, labels: bool) -> dict[str, Any]:
    tokens = TOKENS[n : n + 1, : LENGTHS[n]]
    return {"input_ids": tokens, "labels": tokens} if labels else {"input_ids": tokens}


def distance(A: Tensor, B: Tensor) -> float:
    return float(torch.linalg.norm(A - B) / torch.linalg.norm(B))


@pytest.mark.parametrize("kind", ["predictive", "empirical", "layerwise"])
@pytest.mark.parametrize("head", ["next", "same"])
def test_a_padded_batch_is_its_samples(head, kind):
    model, likelihood = Reader(head), "token-categorical"
    found = fl.exact_fisher(model, batch(labels=True), likelihood, kind)
    parts = [fl.exact_fisher(model, alone(n, labels=True), likelihood, kind) for n in range(3)]
    assert set(found) == {"embedding", "query", "value", "out"}
    for name, F in found.items():
        assert distance(F.dense(), sum(part[name].dense() for part in parts) / 3) < 1e-12


class Normed(Reader):
    """With a norm, whose own gradients have no positions left."""

    def __init__(self) -> None:
        super().__init__("same")
        self.embedding = nn.Sequential(self.embedding, nn.LayerNorm(4).double(), nn.Tanh())


@pytest.mark.parametrize("kind", ["predictive", "layerwise"])
def test_a_norms_positions_are_those_of_its_samples(kind):
    model, likelihood = Normed(), "token-categorical"
    F = fl.exact_fisher(model, batch(labels=True), likelihood, kind, layers=["embedding.1"])
    parts = [
        fl.exact_fisher(model, alone(n, labels=True), likelihood, kind, layers=["embedding.1"])
        for n in range(3)
    ]
    expected = sum(part["embedding.1"].dense() for part in parts) / 3
    assert distance(F["embedding.1"].dense(), expected) < 1e-12


@pytest.mark.parametrize("labels", [True, False])
def test_statistics_of_a_padded_batch_count_its_tokens_alone(labels):
    model, names = Reader("same"), ("kfac", "tkfac", "lngd", "foof")
    padded = fl.collect_statistics(model, batch(labels=labels), "token-categorical", approximations=names)
    first, *rest = (
        fl.collect_statistics(model, alone(n, labels=labels), "token-categorical", approximations=names)
        for n in range(3)
    )
    together = sum(rest, first)
    for method in names:
        expected = together.build(method)
        for name, F in padded.build(method).items():
            assert distance(F.dense(), expected[name].dense()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.float64])
def test_a_mask_without_labels_has_no_label_columns_at_padding(dtype):
    model, padded = Reader("same"), batch(labels=False)
    padded["attention_mask"] = padded["attention_mask"].to(dtype)
    found = fl.exact_fisher(model, padded, "token-categorical", method="per-sample")
    parts = [fl.exact_fisher(model, alone(n, labels=False), "token-categorical") for n in range(3)]
    for name, F in found.items():
        assert distance(F.dense(), sum(part[name].dense() for part in parts) / 3) < 1e-12


@pytest.mark.parametrize("careless", [False, True])
def test_one_label_a_sample_with_a_mask_of_tokens(careless):
    model, labels = Reader("pooled", careless=careless), torch.tensor([0, 3, 6])
    padded = {"input_ids": TOKENS, "attention_mask": MASK, "labels": labels}
    plain = fl.exact_fisher(model, (padded | {"labels": None}, labels))
    found = fl.exact_fisher(model, padded)
    reference = fl.exact_fisher(model, padded, method="per-sample")
    for name, F in found.items():
        assert torch.equal(F.dense(), plain[name].dense())
        assert distance(F.dense(), reference[name].dense()) < 1e-12
    A = fl.approximate("foof", model, padded, layers="query")["query"].factors[0]
    counted = MASK.numel() if careless else int(MASK.sum())  # positions, over three samples
    assert float(A[-1, -1]) == pytest.approx(counted / 3)


def left(values: Tensor) -> Tensor:
    """Rows with their padding before the tokens."""
    rows = [torch.cat([row[n:], row[:n]]) for row, n in zip(values, LENGTHS, strict=True)]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("side", [Tensor.clone, left])
@pytest.mark.parametrize("kind", ["predictive", "empirical"])
def test_labels_at_padding_are_none_whatever_they_are(kind, side, dtype):
    """Tokens taken for labels as they are, without -100: no token is followed by the padding."""
    model, likelihood, mask = Reader("next"), "token-categorical", side(MASK)
    padded = {"input_ids": side(TOKENS) * mask, "attention_mask": mask.to(dtype)}
    given = padded | {"labels": padded["input_ids"].clone()}
    found = fl.exact_fisher(model, given, likelihood, kind)
    parts = [fl.exact_fisher(model, alone(n, labels=True), likelihood, kind) for n in range(3)]
    for name, F in found.items():
        assert distance(F.dense(), sum(part[name].dense() for part in parts) / 3) < 1e-12
    loaded = DataLoader([{k: v[n] for k, v in given.items()} for n in range(3)], batch_size=2)
    for name, F in fl.exact_fisher(model, loaded, likelihood, kind, method="per-sample").items():
        assert distance(F.dense(), found[name].dense()) < 1e-12
    counted = fl.collect_statistics(model, given, likelihood, kind=kind, approximations=["kfac"])
    first, *rest = (
        fl.collect_statistics(model, alone(n, labels=True), likelihood, kind=kind, approximations=["kfac"])
        for n in range(3)
    )
    expected = sum(rest, first).build("kfac")
    for name, K in counted.build("kfac").items():
        assert distance(K.dense(), expected[name].dense()) < 1e-12


def test_labels_of_packed_rows_are_those_of_the_models_own_loss():
    """A mask that numbers the texts of a row hides the padding alone; -100 is no label, as without a mask."""
    model, numbers = Reader("next"), MASK * torch.tensor([1, 1, 2, 2, 2])
    labels = TOKENS.masked_fill((numbers == 2) & (numbers.roll(1, 1) == 1), -100)
    own = {"input_ids": TOKENS, "attention_mask": numbers}
    given = {"labels": labels}, {"labels": labels.masked_fill(MASK == 0, -100)}
    found, expected = (fl.exact_fisher(model, own | one, "token-categorical", "empirical") for one in given)
    for name, F in found.items():
        assert torch.equal(F.dense(), expected[name].dense())


def test_without_a_mask_of_tokens_nothing_is_padding():
    """Also where the mask is what is added to scores, or that of other positions."""
    expected = None
    for mask in (None, torch.zeros(3, T), torch.ones(3, T + 1)):

        class Blind(Reader):
            def forward(self, input_ids, attention_mask=None, labels=None):
                return super().forward(input_ids, None, labels)

        model = Blind("next")
        given = {"input_ids": TOKENS, "labels": TOKENS} | ({} if mask is None else {"attention_mask": mask})
        found = fl.exact_fisher(model, given, "token-categorical", "empirical")["out"].dense()
        expected = found if expected is None else expected
        assert torch.equal(found, expected)
    (model(TOKENS, labels=TOKENS)["loss"] * 3 * (T - 1)).backward()
    g = torch.cat([model.out.weight.grad, model.out.bias.grad[:, None]], 1)
    parts = [model(row[None], labels=row[None])["loss"] * (T - 1) for row in TOKENS]
    rows = [torch.autograd.grad(part, [model.out.weight, model.out.bias]) for part in parts]
    V = torch.stack([torch.cat([W, b[:, None]], 1).T.flatten() for W, b in rows])
    assert distance(V.sum(0), g.T.flatten()) < 1e-12
    assert distance(expected, V.T @ V / 3) < 1e-12


@pytest.mark.parametrize("head", ["next", "same"])
def test_a_loss_that_leaves_out_padding_itself(head):
    class Careful(Reader):
        def forward(self, input_ids, attention_mask=None, labels=None, **flags):
            if labels is not None:
                labels = labels.masked_fill(attention_mask == 0, -100)
            return super().forward(input_ids, attention_mask, labels, **flags)

    given = batch(labels=True)
    expected = fl.exact_fisher(Reader(head), given, "token-categorical", "empirical")
    found = fl.exact_fisher(Careful(head), given | {"labels": TOKENS}, "token-categorical", "empirical")
    for name, F in found.items():
        assert torch.equal(F.dense(), expected[name].dense())


def test_padding_of_what_is_read_hides_no_label_of_what_is_written():
    """The labels of a decoder stand at its positions, of which the encoder's mask says nothing."""

    class Translator(Reader):
        def forward(self, input_ids, decoder_input_ids, attention_mask=None, labels=None, **flags):
            return super().forward(decoder_input_ids, None, labels)

    given = {"input_ids": TOKENS, "attention_mask": MASK, "decoder_input_ids": TOKENS.flip(0)}
    labels = {"labels": TOKENS.flip(0)}
    found = fl.exact_fisher(Translator("next"), given | labels, "token-categorical", "empirical")
    plain = {"input_ids": TOKENS.flip(0)} | labels
    expected = fl.exact_fisher(Reader("next"), plain, "token-categorical", "empirical")
    for name, F in found.items():
        assert torch.equal(F.dense(), expected[name].dense())


def test_padding_that_the_loss_depends_on_later_is_refused():
    model, whole = Reader("pooled", careless=True), torch.ones_like(MASK)
    data = [
        ({"input_ids": TOKENS, "attention_mask": whole}, torch.tensor([0, 1, 2])),
        ({"input_ids": TOKENS, "attention_mask": MASK}, torch.tensor([0, 1, 2])),
    ]
    with pytest.raises(InputError, match=r"depends on what layer .* gives at padding"):
        fl.exact_fisher(model, data)
    fl.exact_fisher(model, data[::-1])


def test_labels_of_a_pair_are_those_of_the_positions():
    """A pair's targets are taken as they are, also of a model whose own loss shifts them."""
    model = Reader("next")
    inputs = {"input_ids": TOKENS, "attention_mask": MASK}
    shifted = torch.cat([TOKENS.masked_fill(MASK == 0, -100)[:, 1:], torch.full((3, 1), -100)], 1)
    pair = fl.exact_fisher(model, (inputs, shifted), "token-categorical", "empirical")
    within = fl.exact_fisher(model, batch(labels=True), "token-categorical", "empirical")
    for name, F in pair.items():
        assert torch.equal(F.dense(), within[name].dense())


@pytest.mark.parametrize("head", ["next", "same"])
def test_the_label_of_a_sample_is_that_of_the_models_own_loss(head):
    model = Reader(head)
    count = LENGTHS[1] - (head == "next")
    (model(**alone(1, labels=True))["loss"] * count).backward()
    v = torch.cat([model.out.weight.grad, model.out.bias.grad[:, None]], 1).T.flatten()
    F = fl.exact_fisher(model, alone(1, labels=True), "token-categorical", "empirical", "out")["out"]
    assert distance(F.dense(), torch.outer(v, v)) < 1e-12


@pytest.mark.parametrize("form", ["loader", "userdict", "pairs", "one"])
def test_forms_of_batches(form):
    model, expected = Reader("next"), fl.exact_fisher(Reader("next"), batch(labels=True), "token-categorical")
    plain = {name: value for name, value in batch(labels=True).items() if isinstance(value, Tensor)}
    data: Any = {
        "loader": DataLoader([{k: v[n] for k, v in plain.items()} for n in range(3)], batch_size=2),
        "userdict": UserDict(plain),
        "pairs": [(batch(labels=True), None)],
        "one": [(UserDict(plain),)],
    }[form]
    for name, F in fl.exact_fisher(model, data, "token-categorical").items():
        assert distance(F.dense(), expected[name].dense()) < 1e-12


def test_a_model_that_needs_its_labels_is_given_them():
    class Decoder(Reader):
        def forward(self, input_ids, attention_mask=None, labels=None, **flags):
            before = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
            found = super().forward(before.clamp(min=0))
            return {**found, "loss": cross_entropy(found["logits"].flatten(0, 1), labels.flatten())}

    given = {"input_ids": TOKENS, "labels": TOKENS}
    found = fl.exact_fisher(Decoder("next"), given, "token-categorical", "empirical")
    before = torch.cat([torch.zeros_like(TOKENS[:, :1]), TOKENS[:, :-1]], 1)
    expected = fl.exact_fisher(
        Reader("next"), ({"input_ids": before}, TOKENS), "token-categorical", "empirical"
    )
    for name, F in found.items():
        assert distance(F.dense(), expected[name].dense()) < 1e-12


def test_a_loss_that_reads_labels_otherwise_is_refused():
    class Backwards(Reader):
        def forward(self, input_ids, labels=None, **flags):
            found = super().forward(input_ids)
            if labels is not None:
                found["loss"] = cross_entropy(found["logits"].flatten(0, 1), labels.flip(1).flatten())
            return found

    with pytest.raises(InputError, match=r"reads its labels neither .* give targets"):
        fl.exact_fisher(Backwards("same"), {"input_ids": TOKENS, "labels": TOKENS}, "token-categorical")


def test_flags_that_differ_between_passes_are_found_out():
    class Twice:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([({"input_ids": TOKENS, "position": self.passes}, TOKENS)])

    with pytest.raises(InputError, match="the data differ between two passes"):
        fl.compare(Reader("same"), Twice(), "ekfac", "token-categorical")


def test_what_is_neither_tensor_nor_flag_is_refused():
    with pytest.raises(InputTypeError, match="'cache' among the inputs is a object, neither a tensor nor"):
        fl.exact_fisher(
            Reader("same"), [({"input_ids": TOKENS, "cache": object()}, TOKENS)], "token-categorical"
        )


def test_an_optimizer_draws_no_labels_at_padding():
    """Its statistics of a padded batch are those of the drawn columns without the rows at padding."""
    model = Reader("same")
    steps = fl.optim.KFAC(model, lr=0.1, likelihood="token-categorical", statistics_every=1)
    found = model(input_ids=TOKENS, attention_mask=MASK)["logits"]
    cross_entropy(found.flatten(0, 1), TOKENS.masked_fill(MASK == 0, -100).flatten()).backward()
    steps.step()
    whole = Reader("same")
    others = fl.optim.KFAC(whole, lr=0.1, likelihood="token-categorical", statistics_every=1)
    found = whole(TOKENS, MASK)["logits"]  # by place: nothing says that this is a mask of tokens
    cross_entropy(found.flatten(0, 1), TOKENS.masked_fill(MASK == 0, -100).flatten()).backward()
    others.step()
    traces = [one.diagnostics().set_index("layer").loc["out", "trace_output"] for one in (steps, others)]
    assert 0 < traces[0] < traces[1]


def test_inputs_are_told_with_their_names():
    given = {"input_ids": TOKENS, "attention_mask": torch.full((3, T), torch.nan)}
    with pytest.raises(InputError, match=r"the inputs 'attention_mask' of batch 0 hold values that are not"):
        fl.exact_fisher(Reader("same"), given, "token-categorical")
    given = {"input_ids": TOKENS, "attention_mask": torch.ones(3, T + 1)}
    with pytest.raises(InputError, match=r"input_ids \[2, 5\] torch.int64, attention_mask \[2, 6\] torch.fl"):
        fl.exact_fisher(Reader("same"), given, "token-categorical")
