"""Names, options, and an approximation of a third party."""

import io
from typing import ClassVar

import pytest
import torch
from matplotlib.colors import to_hex
from reference import relative
from rich.console import Console
from torch import Tensor

import fisherlab as fl
from fisherlab.approximations import base, create, create_all, registered
from fisherlab.approximations.kfac import KFAC
from fisherlab.errors import InputError, InputTypeError
from fisherlab.operators import KroneckerOperator
from fisherlab.statistics import LayerSums, Statistic

BUILT_IN = {
    "diagonal",
    "kfac",
    "ekfac",
    "tkfac",
    "tekfac",
    "lngd",
    "lngd-lr",
    "ngplus",
    "foof",
    "nearest-kronecker",
}


def squared_inputs(a: Tensor, _: Tensor | None) -> Tensor:
    """Σ_n Σ_t a∘a."""
    return a.square().sum((0, 1))


class InputDiagonal(fl.Approximation):
    """diag(E[Σ_t a∘a]) ⊗ I: of the inputs only their second moments."""

    name: ClassVar[str] = "input-diagonal"
    formula: ClassVar[str] = "diag(E[Σ_t a∘a]) ⊗ c I"
    source: ClassVar[str] = "a test"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def statistics(self, layer, kind: str) -> tuple[Statistic, ...]:
        return (Statistic("input-squares", squared_inputs),)

    def build(self, layer, sums: LayerSums, kind: str) -> KroneckerOperator:
        A = torch.diag(sums.mean(*self.statistics(layer, kind)))
        return KroneckerOperator(A, self.scale * torch.eye(layer.outputs, dtype=A.dtype))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def test_the_built_in_ones_are_registered_with_their_sources():
    known = registered()
    assert set(known) >= BUILT_IN
    for name, cls in known.items():
        assert cls.name == name
        assert cls.formula
        assert cls.source


# --- a third party's -----------------------------------------------------------------------------------


def test_a_third_party_appears_everywhere(categorical):
    fl.register_approximation(InputDiagonal)
    F = fl.exact_fisher(categorical.model, categorical.data)
    found = fl.approximate("input-diagonal", categorical.model, categorical.data, scale=3.0)
    inputs = torch.cat([categorical.inputs, torch.ones(40, 1).double()], 1)
    expected = torch.kron(torch.diag(inputs.square().mean(0)), 3 * torch.eye(5).double())
    assert relative(found["0"].dense(), expected) < 1e-12
    c = fl.compare(categorical.model, categorical.data, ("kfac", "input-diagonal"))
    rows = c.records[c.records["approximation"] == "input-diagonal"]
    assert list(rows["layer"]) == ["0", "2", "4"]
    own = c.operators("0")["input-diagonal"]
    assert rows.iloc[0]["relative_error"] == pytest.approx(fl.metrics.relative_error(F["0"], own))
    assert rows["population_error"].notna().all()
    assert (c.directions["approximation"] == "input-diagonal").sum() == 18
    titles = " ".join(axes.get_title() for axes in c.heatmap("0", "input-diagonal").axes)
    assert "input-diagonal" in titles
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(c.table())
    assert "input-diagonal" in console.export_text()


def test_a_third_party_is_called_and_coloured_as_its_class_says(categorical, tmp_path, monkeypatch):
    class Named(InputDiagonal):
        name, label, colour, own_scale = "named", "In-Diag²", "#123456", True

    fl.register_approximation(Named)
    monkeypatch.setattr("fisherlab.plots.workers.save", lambda figure, path: path.with_suffix(".png").touch())
    c = fl.compare(categorical.model, categorical.data, ("kfac", "named"))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(c.table())
    assert "In-Diag²†" in console.export_text()
    page = (c.save(tmp_path / "run") / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">In-Diag²†' in page
    legend = fl.plots.errors(c.records, caption="here").legends[0]
    looks = dict(zip([text.get_text() for text in legend.get_texts()], legend.get_patches(), strict=True))
    assert to_hex(looks["In-Diag²"].get_facecolor()) == "#123456"
    lines = fl.plots.directions(c.directions, caption="here").axes[0].lines
    assert "#123456" in {line.get_color() for line in lines}
    assert any("In-Diag²" in axes.get_title() for axes in c.heatmap("0", "named").axes)


def test_a_class_does_not_go_by_the_label_of_the_one_it_derives_from():
    class Mine(KFAC):
        name = "mine"

    class Part(KFAC):
        """Without a name of its own."""

    fl.register_approximation(Mine)
    assert (Mine.label, Mine.colour) == ("mine", None)
    assert (Part.label, Part.colour) == (KFAC.label, KFAC.colour) == ("KFAC", fl.plots.color("kfac"))
    assert fl.plots.label("mine") == "mine"
    assert fl.plots.color("mine") == fl.plots.color("a stranger")


def test_statistics_of_a_third_party_are_saved(categorical, tmp_path):
    fl.register_approximation(InputDiagonal)
    statistics = fl.collect_statistics(
        categorical.model, categorical.data, approximations=("input-diagonal",)
    )
    statistics.save(tmp_path / "own.safetensors")
    loaded = fl.load_statistics(tmp_path / "own.safetensors").build("input-diagonal")
    for layer, operator in statistics.build("input-diagonal").items():
        assert torch.equal(operator.dense(), loaded[layer].dense())


def test_an_instance_needs_no_registration(categorical):
    found = fl.approximate(InputDiagonal(2.0), categorical.model, categorical.data)
    assert found["2"].factors[1][0, 0] == 2


def test_registering_twice_is_harmless_and_taking_a_name_is_not():
    fl.register_approximation(InputDiagonal)
    fl.register_approximation(InputDiagonal)

    class Other(InputDiagonal):
        pass

    with pytest.raises(InputError, match="'input-diagonal' is taken by InputDiagonal"):
        fl.register_approximation(Other)


def test_classes_that_cannot_be_registered():
    class Nameless(InputDiagonal):
        name = None

    class Loud(InputDiagonal):
        name = "Loud"

    class Comma(InputDiagonal):
        name = "a,b"

    class Colourful(InputDiagonal):
        colour = "blueish"

    class Half(fl.Approximation):
        name = formula = source = "half"

        def statistics(self, layer, kind):
            return ()

    with pytest.raises(InputError, match="Nameless needs a class attribute 'name'"):
        fl.register_approximation(Nameless)
    with pytest.raises(InputError, match=r"Colourful\.colour is 'blueish'; give one such as"):
        fl.register_approximation(Colourful)
    for cls in (Loud, Comma):
        with pytest.raises(InputError, match="in lower case and without commas"):
            fl.register_approximation(cls)
    for thing in (Half, InputDiagonal(), int, "kfac"):
        with pytest.raises(InputTypeError, match="derives from Approximation"):
            fl.register_approximation(thing)


# --- names and options ----------------------------------------------------------------------------------


def test_wrong_names():
    with pytest.raises(InputError, match="unknown approximation 'kfc'; did you mean kfac"):
        create("kfc")
    with pytest.raises(InputTypeError, match="approximation must be a string or an Approximation, not 3"):
        create(3)
    with pytest.raises(InputError, match="known: adafactor, adam, diagonal"):
        create("zzzzzz")


def test_wrong_options():
    with pytest.raises(InputError, match="kfac has no option 'positions'; it takes sharing"):
        create("kfac", positions="exact")
    with pytest.raises(InputError, match="foof has no option 'scale'; it takes none"):
        create("foof", scale=1)
    with pytest.raises(InputError, match="unknown sharing 'extend'; did you mean expand"):
        create("kfac", sharing="extend")
    with pytest.raises(InputError, match="unknown sharing"):
        create("ekfac", sharing="extend")
    with pytest.raises(InputError, match="unknown positions"):
        create("tekfac", positions="all")
    with pytest.raises(InputError, match="unknown last"):
        create("lngd", last="softmax")
    for sampling in (0, -1, True, "drawn", 1.5):
        with pytest.raises((InputError, InputTypeError), match="sampling"):
            create("lngd", sampling=sampling)


def test_lists_of_names():
    assert [method.name for method in create_all("kfac")] == ["kfac"]
    assert [method.name for method in create_all(["kfac", InputDiagonal()])] == ["kfac", "input-diagonal"]
    with pytest.raises(InputError, match="'kfac' is asked for more than once"):
        create_all(["kfac", "ekfac", "kfac"])
    with pytest.raises(InputError, match="name at least one approximation; known: adafactor, adam, diagonal"):
        create_all([])


def test_label_and_colour_come_with_the_class_that_gives_the_name():
    class Named:
        name: ClassVar[str] = "by-mixin"

    class Mixed(Named, KFAC):
        pass

    class Late(KFAC):
        pass

    Late.name = "late"

    class Bare(fl.Approximation):
        statistics, build = KFAC.statistics, KFAC.build

    Bare.name, Bare.formula, Bare.source = "bare", "A ⊗ B", "this test"
    for cls in (Mixed, Late, Bare):
        fl.register_approximation(cls)
        assert (cls.label, cls.colour) == (cls.name, None)
        assert fl.plots.label(cls.name) == cls.name

    class Unwritable(KFAC):
        name: ClassVar[str] = "unwritable"
        label = 4

    with pytest.raises(InputError, match="give a string, as tables are to show it"):
        fl.register_approximation(Unwritable)
