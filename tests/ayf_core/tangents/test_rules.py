"""Every rule of dual values against torch's own forward mode: value, tangent, and the gradient of the value."""

import logging
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from ayf_core.errors import AyfError
from ayf_core.networks.attention import forward_mode_attention
from ayf_core.tangents import attention, dual, normalisations, rules  # noqa: F401
from ayf_core.tangents.dual import RULES, Dual, rule

X = (4, 6)
SHAPED = {  # linear in the input: arguments, for the function and the method of that name
    "reshape": ((2, 12),),
    "permute": ((1, 0),),
    "transpose": (0, 1),
    "chunk": (2, 1),
    "flatten": (0,),
    "unflatten": (1, (2, 3)),
    "unbind": (1,),
    "sum": (1,),
    "mean": (0,),
    "squeeze": (),
    "unsqueeze": (1,),
    "neg": (),
    "narrow": (1, 1, 3),
    "split": (4, 1),
    "movedim": (0, 1),
    "moveaxis": (0, 1),
    "swapaxes": (0, 1),
    "tile": ((2, 1),),
    "roll": (1, 0),
    "flip": ((0,),),
    "select": (0, 1),
    "index_select": (1, torch.tensor([3, 0])),
    "gather": (1, torch.tensor([[3, 0], [1, 1]])),
    "tril": (),
    "triu": (),
    "diff": (),
    "diagonal": (),
    "cumsum": (1,),
    "repeat_interleave": (2, 0),
}
METHODS = {
    "view": (3, 8),
    "view_as": (torch.zeros(3, 8),),
    "reshape_as": (torch.zeros(3, 8),),
    "expand": (2, 4, 6),
    "expand_as": (torch.zeros(2, 4, 6),),
    "contiguous": (),
    "to": (torch.float64,),
    "double": (),
    "type": (torch.float64,),
    "type_as": (torch.zeros(1, dtype=torch.float64),),
    "repeat": (2, 1),
    "t": (),
    "cpu": (),
    "swapdims": (0, 1),
    "clone": (),
    "__getitem__": ((slice(None), 2),),
    "__neg__": (),
}
LOW = ("float", "half", "bfloat16")
"""Casts to less than the tests' float64."""
WEIGHT, BIAS = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 6), torch.ones(3, dtype=torch.float64)
OTHER = torch.linspace(-2, 3, 24, dtype=torch.float64).view(4, 6)


def kernel(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


POINTWISE = {
    "gelu": lambda x: functional.gelu(x),
    "gelu tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "silu in place": lambda x: functional.silu(1 * x, inplace=True),
    "relu": functional.relu,
    "torch.relu": torch.relu,
    "x.relu": lambda x: x.relu(),
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "sigmoid": torch.sigmoid,
    "x.sigmoid": lambda x: x.sigmoid(),
    "tanh": torch.tanh,
    "x.tanh": lambda x: x.tanh(),
    "exp": torch.exp,
    "x.exp": lambda x: x.exp(),
    "log": lambda x: torch.log(3 + x),
    "x.log": lambda x: (5 + x).log(),
    "sqrt": lambda x: torch.sqrt(5 + x),
    "x.sqrt": lambda x: (5 + x).sqrt(),
    "rsqrt": lambda x: torch.rsqrt(5 + x),
    "x.rsqrt": lambda x: (5 + x).rsqrt(),
    "square": torch.square,
    "x.square": lambda x: x.square(),
    "sin": torch.sin,
    "x.sin": lambda x: x.sin(),
    "cos": torch.cos,
    "x.cos": lambda x: x.cos(),
}
ALGEBRA = {
    "x + x": lambda x: x + x.flip(0),
    "x + 1": lambda x: x + 1,
    "1 + x": lambda x: 1 + x,
    "x + y": lambda x: x + OTHER,
    "y + x": lambda x: OTHER + x,
    "add": lambda x: torch.add(x, x.flip(0), alpha=3),
    "add y": lambda x: torch.add(OTHER, x, alpha=3),
    "x.add": lambda x: x.add(x),
    "broadcast": lambda x: x[:1] + OTHER,
    "x - x": lambda x: x - x.flip(0),
    "x - y": lambda x: x - OTHER,
    "y - x": lambda x: OTHER - x,
    "2 - x": lambda x: 2 - x,
    "sub": lambda x: torch.sub(x, OTHER, alpha=2),
    "x.sub": lambda x: x.sub(x.flip(0)),
    "rsub": lambda x: torch.rsub(x, OTHER),
    "x * x": lambda x: x * x.flip(0),
    "3 * x": lambda x: 3 * x,
    "x * y": lambda x: x * OTHER,
    "y * x": lambda x: OTHER * x,
    "mul": lambda x: torch.mul(x, x),
    "x.mul": lambda x: x.mul(x),
    "multiply": lambda x: torch.multiply(OTHER, x),
    "product broadcast": lambda x: x[:1] * OTHER,
    "x / 2": lambda x: x / 2,
    "x / y": lambda x: x / (5 + OTHER),
    "x / x": lambda x: x / (5 + x.flip(0)),
    "1 / x": lambda x: 1 / (5 + x),
    "y / x": lambda x: OTHER / (5 + x),
    "div": lambda x: torch.div(x, 5 + x),
    "x.div": lambda x: x.div(5 + x),
    "true_divide": lambda x: torch.true_divide(x, 5 + x),
    "addcmul": lambda x: torch.addcmul(x, x.flip(0), x, value=2),
    "addcmul of y": lambda x: torch.addcmul(OTHER, OTHER, x),
    "addcmul broadcast": lambda x: torch.addcmul(x[:1], OTHER, OTHER),
    "x.addcmul": lambda x: x.addcmul(x, OTHER),
    "x @ x": lambda x: x @ x.t(),
    "x @ y": lambda x: x @ OTHER.t(),
    "y @ x": lambda x: OTHER.t() @ x,
    "matmul": lambda x: torch.matmul(x, x.t()),
    "x.matmul": lambda x: x.matmul(x.t()),
    "mm": lambda x: torch.mm(x, OTHER.t()),
    "x.mm": lambda x: x.mm(OTHER.t()),
    "bmm": lambda x: torch.bmm(x[None], x.t()[None]),
    "x.bmm": lambda x: x[None].bmm(OTHER.t()[None]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x.flip(0)),
    "einsum of three": lambda x: torch.einsum("ij,kj,k->i", x, OTHER, x[:, 0]),
    "einsum of a list": lambda x: torch.einsum("ij,kj->ik", [x, OTHER]),
    "cat": lambda x: torch.cat([x, OTHER, x], dim=1),
    "concat": lambda x: torch.concat([x, x]),
    "stack": lambda x: torch.stack([x, OTHER], dim=1),
    "where": lambda x: torch.where(OTHER > 0, x, OTHER),
    "where, a number": lambda x: torch.where(OTHER > 0, 0.0, x),
    "pad": lambda x: functional.pad(x, (1, 2), value=3.0),
    "pad around": lambda x: functional.pad(x.view(1, 4, 6), (1, 2), mode="circular"),
    "turned": lambda x: x.T @ x.mT.T + x.real.T @ x,
    "iteration": lambda x: sum(row * i for i, row in enumerate(x)),
    "constants": lambda x: x * torch.zeros_like(x).add(2) + x.new_ones(6) * x.detach() + x.size(0) + x.dim() + len(x),
    "rounded": lambda x: x + x.round() + torch.sign(x) + torch.floor(x) + x.shape[1] + x.ndim + x.numel(),
    "compared": lambda x: torch.where(x > 0, x, -x) + (x <= 0).double(),
}
LAYERS = {
    "linear": lambda x: functional.linear(x, WEIGHT, BIAS),
    "linear without bias": lambda x: functional.linear(x, WEIGHT),
    "linear of moving weights": lambda x: functional.linear(x, x, x[:, 0]),
    "conv1d": lambda x: functional.conv1d(x[None], kernel(2, 4, 3), kernel(2), padding=1),
    "conv2d": lambda x: functional.conv2d(x.view(1, 1, 4, 6), kernel(2, 1, 3, 3), kernel(2), stride=2, padding=1),
    "conv3d": lambda x: functional.conv3d(x.view(1, 1, 2, 2, 6), kernel(2, 1, 1, 2, 2), kernel(2)),
    "conv_transpose1d": lambda x: functional.conv_transpose1d(x[None], kernel(4, 2, 3), kernel(2), stride=2),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(x.view(1, 1, 4, 6), kernel(1, 2, 2, 2), kernel(2)),
    "conv_transpose3d": lambda x: functional.conv_transpose3d(x.view(1, 1, 2, 2, 6), kernel(1, 2, 1, 2, 2), kernel(2)),
    "interpolate": lambda x: functional.interpolate(x.view(1, 1, 4, 6), scale_factor=2.0, mode="bilinear"),
    "avg_pool1d": lambda x: functional.avg_pool1d(x, 2),
    "avg_pool2d": lambda x: functional.avg_pool2d(x.view(1, 1, 4, 6), 2),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x.view(1, 4, 2, 3), 2),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x.view(1, 1, 4, 6), 2),
    "unfold": lambda x: functional.unfold(x.view(1, 1, 4, 6), 2),
    "fold": lambda x: functional.fold(x.view(1, 4, 6), (3, 4), 2),
    "layer_norm": lambda x: functional.layer_norm(x, (6,)),
    "layer_norm with weights": lambda x: functional.layer_norm(x, (6,), kernel(6), kernel(6), 1e-3),
    "group_norm": lambda x: functional.group_norm(x.view(2, 4, 3), 2),
    "group_norm with weights": lambda x: functional.group_norm(x.view(1, 4, 3, 2), 2, kernel(4), kernel(4)),
    "rms_norm": lambda x: functional.rms_norm(x, (6,)),
    "rms_norm with weights": lambda x: functional.rms_norm(x, (6,), kernel(6), 1e-3),
    "softmax": lambda x: functional.softmax(x, dim=1),
    "torch.softmax": lambda x: torch.softmax(x, 0),
    "x.softmax": lambda x: x.softmax(-1),
    "dropout at rest": lambda x: functional.dropout(x, 0.5, training=False),
    "dropout1d at rest": lambda x: functional.dropout1d(x, 0.5, training=False),
    "dropout2d at rest": lambda x: functional.dropout2d(x[None, None], 0.5, training=False),
    "dropout3d at rest": lambda x: functional.dropout3d(x[None, None, None], 0.5, training=False),
}


def heads(x, count=3):
    """Queries, keys and values [1, 2, 4, 3] that all move."""
    return [functional.linear(x, kernel(6, 6) * (i + 1)).view(1, 4, 2, 3).transpose(1, 2) for i in range(count)]


SEEN = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
sdpa = functional.scaled_dot_product_attention
ATTENTION = {
    "attention": lambda x: sdpa(*heads(x)),
    "scaled": lambda x: sdpa(*heads(x), scale=0.3),
    "causal": lambda x: sdpa(*heads(x), is_causal=True),
    "masked": lambda x: sdpa(*heads(x), attn_mask=SEEN),
    "biased": lambda x: sdpa(*heads(x), attn_mask=kernel(2, 4, 4)),
    "of fewer queries": lambda x: sdpa(heads(x)[0][:, :, :2], *heads(x)[1:]),
    "of standing keys": lambda x: sdpa(heads(x)[0], kernel(1, 2, 5, 3), kernel(1, 2, 5, 3)),
    "of shared keys": lambda x: sdpa(heads(x)[0], *(h[:, :1] for h in heads(x)[1:]), enable_gqa=True),
}
CASES = {
    **{f"torch.{name}": lambda x, n=name, a=a: getattr(torch, n)(x, *a) for name, a in SHAPED.items()},
    **{f"x.{name}": lambda x, n=name, a=a: getattr(x, n)(*a) for name, a in (SHAPED | METHODS).items()},
    **POINTWISE,
    **ALGEBRA,
    **LAYERS,
    **ATTENTION,
}


def compared(function, x, direction):
    """Value, tangent and gradient: by dual values, then by torch."""
    found = []
    for by_dual in (True, False):
        leaf = x.clone().requires_grad_()
        if by_dual:
            outputs = function(Dual(leaf, direction))
            outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
            values, tangents = [o.value for o in outputs], [o.tangent for o in outputs]
            assert not any(d.requires_grad for d in tangents)
        else:
            values = function(leaf)
            values = list(values) if isinstance(values, (tuple, list)) else [values]

            def whole(x):
                result = function(x)
                return tuple(result) if isinstance(result, (tuple, list)) else (result,)

            with forward_mode_attention():
                tangents = list(torch.func.jvp(whole, (x,), (direction,))[1])
        loss = sum((v * torch.linspace(1, 2, v.numel(), dtype=v.dtype).view(v.shape)).sum() for v in values)
        found.append((values, tangents, torch.autograd.grad(loss, leaf)[0]))
    return found


@pytest.fixture
def point():
    return kernel(*X), torch.randn(X, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_torchs_own_derivative(name, point):
    ours, theirs = compared(CASES[name], *point)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LOW)
def test_casts_take_the_tangent_along(name, point):
    moved = getattr(Dual(*point), name)()
    assert moved.value.dtype == moved.tangent.dtype == getattr(point[0], name)().dtype
    assert torch.equal(moved.tangent, getattr(point[1], name)())


OPERATORS = {name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "neg", "matmul", "getitem")}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_compiler_meets_the_rule_of_the_operator(name, point):
    function = OPERATORS[name]
    square = torch.full((X[-1], X[-1]), 0.3, dtype=torch.float64)
    given = {"neg": [()], "getitem": [(0,)], "matmul": [(square,)]}.get(name, [(OTHER,), (2.5,), (Dual(*point),)])
    for others in given:
        found, expected = RULES[function](Dual(*point), *others), function(Dual(*point), *others)
        assert torch.equal(found.value, expected.value)
        assert torch.equal(found.tangent, expected.tangent)
        if name in ("add", "sub", "mul", "truediv"):
            found, expected = RULES[function](*others, Dual(*point)), function(*others, Dual(*point))
            assert torch.equal(found.value, expected.value)
            assert torch.equal(found.tangent, expected.tangent)


@pytest.mark.slow
def test_every_operator_is_compiled_without_a_break(point):
    other = OTHER

    def all_of_them(x):
        y = (x + 1.5) * 2.0 - x / 3.0 + (1.0 - x) + (-x) + (other - x) + (x - other) + other * x + x / (x * x + 1.0)
        return (
            torch.where(x > 0, y, -y)[1:].reshape(-1).exp()
            + torch.matmul(y, other.mT)[0, 0]
            + torch.matmul(y, y.mT)[0, 1]
        )

    value, derivative = Dual(*point), all_of_them(Dual(*point))
    found = torch.compile(all_of_them, fullgraph=True, backend="eager")(value)
    torch.testing.assert_close((found.value, found.tangent), (derivative.value, derivative.tangent))


@pytest.mark.slow
@pytest.mark.parametrize("product", [lambda x: x @ OTHER.mT, lambda x: OTHER.mT @ x, lambda x: x < OTHER.sum()])
def test_what_a_compiler_would_turn_round_is_left_to_ordinary_code(product, point):
    found, expected = torch.compile(product, backend="eager")(Dual(*point)), product(Dual(*point))
    for part in ("value", "tangent") if isinstance(expected, Dual) else ("T",):
        assert torch.equal(getattr(found, part), getattr(expected, part))


def test_every_rule_is_met_by_a_case_here(point, monkeypatch):
    met, names = set(), {function: answer.__name__ for function, answer in RULES.items()}
    for function, answer in list(RULES.items()):

        def noting(*args, function=function, answer=answer, **kwargs):
            met.add(function)
            return answer(*args, **kwargs)

        monkeypatch.setitem(RULES, function, noting)
        name = getattr(function, "__name__", "")
        if getattr(Dual, name, None) is answer and getattr(torch.Tensor, name, None) is function:
            monkeypatch.setattr(Dual, name, noting)
    for case in CASES.values():
        case(Dual(*point))
    for name in LOW:
        getattr(Dual(*point), name)()
    elsewhere = {torch.Tensor.cuda, *OPERATORS.values()}  # tests/gpu; a compiler meets the functions of `operator`
    missed = {f for f, name in names.items() if f not in met | elsewhere and name != "constant"}
    assert not missed, sorted(str(f) for f in missed)


@pytest.mark.parametrize("rows", [1, 3, 5, 100])
def test_attention_of_any_length_is_cut_without_a_difference(monkeypatch, point, rows):
    whole = ATTENTION["causal"](Dual(*point)).tangent
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 4 * rows)
    torch.testing.assert_close(ATTENTION["causal"](Dual(*point)).tangent, whole, rtol=1e-13, atol=1e-14)


def test_value_and_tangent_are_dropped_together(point):
    torch.manual_seed(3)
    dropped = functional.dropout(Dual(*point), 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropped.value, functional.dropout(point[0], 0.5))
    assert torch.equal(dropped.tangent, torch.where(dropped.value == 0, 0.0, 2 * point[1]))
    assert 0 < (dropped.value == 0).sum() < dropped.value.numel()


def test_a_function_without_a_rule_is_exact_and_named_once(point, caplog, monkeypatch):
    monkeypatch.setattr(dual, "_without_rule", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ours, theirs = compared(lambda x: (x.atan().prod(1), torch.cross(x[:, :3], x[:, 3:], dim=1)), *point)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert [record.getMessage().split("'")[1] for record in caplog.records] == ["atan", "prod", "cross"]


def test_a_rule_of_ones_own_is_asked(point):
    def cube(x):
        return handle_torch_function(cube, (x,), x) if has_torch_function((x,)) else x**3

    @rule(cube)
    def answer(h):
        return Dual(h.value**3, 3 * h.value.detach() ** 2 * h.tangent)

    try:
        ours, theirs = compared(cube, *point)
    finally:
        del RULES[cube]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.mul_(2), "'mul_' changes a tensor in place"),
        (lambda x: torch.zeros(X).copy_(x), "'copy_' changes a tensor in place"),
        (lambda x: torch.zeros(X).__setitem__(0, x[0]), "'__setitem__' changes a tensor in place"),
        (lambda x: torch.zeros(X).__iadd__(x), "'add_' changes a tensor in place"),
        (lambda x: torch.atan(x, out=torch.zeros(X)), "'atan' changes a tensor in place"),
        (lambda x: x.data, "'.data' would leave the tangent behind"),
        (lambda x: torch.nn.functional.ctc_loss(x[:, None].log_softmax(-1), *[torch.ones(1, 1).int()] * 3), "ctc_loss"),
        (lambda x: functional.scaled_dot_product_attention(*heads(x), dropout_p=0.5), "dropout inside attention"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(point, function, said):
    with pytest.raises(AyfError, match=said):
        function(Dual(*point))


def test_autocast_gives_value_and_tangent_the_types_that_torch_gives_the_value(point):
    block = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Softmax(-1), nn.Linear(6, 6))
    x, direction = (part.float() for part in point)
    with torch.autocast("cpu", torch.bfloat16):
        plain, moved = block(x), block(Dual(x, direction))
        for layer in block:
            x = layer(x)
            assert layer(Dual(x.detach(), torch.zeros_like(x))).tangent.dtype == layer(x.detach()).dtype
    assert torch.equal(moved.value, plain)
    exact = torch.func.jvp(block, (point[0].float(),), (direction,))[1]
    assert (moved.tangent - exact).norm() < 0.05 * exact.norm()
