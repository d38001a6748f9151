"""The chunked cross-entropy is the plain one, in value and gradient, without its memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from hpcgemma.train import linear_loss
from hpcgemma.train.linear_loss import summed_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 13, 16, 97


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make chunks of more than one block, and heads of more than one slice."""
    monkeypatch.setattr(linear_loss, "BLOCK_ELEMENTS", 2 * VOCABULARY + 1)
    monkeypatch.setattr(linear_loss, "SLICE_ROWS", 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Head:
    """Inputs of a loss, fresh leaves each time, logits large enough for a softcap of 5 to bite."""

    def __init__(self, tokens: int = TOKENS, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(tokens, HIDDEN, dtype=dtype).to(device).requires_grad_()
        self.weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype).to(device).requires_grad_()
        self.bias = torch.randn(VOCABULARY, dtype=dtype).to(device).requires_grad_()
        self.labels = torch.randint(VOCABULARY, (tokens,)).to(device)

    def gradients(self) -> list[torch.Tensor]:
        found = [each.grad for each in (self.hidden, self.weight, self.bias)]
        return [each for each in found if each is not None]


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the matmuls, and remembers the largest result of any operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.matmuls = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.matmuls += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def plain_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> torch.Tensor:
    """The loss as transformers writes it for Gemma 2 (and the scale as it does for Cohere)."""
    logits = functional.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = logits / softcap
        logits = torch.tanh(logits)
        logits = logits * softcap
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(logits, labels, reduction="sum")


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], relative: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        distance, size = (one - other).double().norm().item(), other.double().norm().item()
        assert distance <= relative * size


def both(
    ours: Head,
    theirs: Head,
    *,
    with_bias: bool = False,
    softcap: float | None = None,
    scale: float = 1.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run both losses backward, each scaled as a trainer scales it, and return them."""
    our_bias, their_bias = (ours.bias, theirs.bias) if with_bias else (None, None)
    one = summed_cross_entropy(
        ours.hidden, ours.weight, ours.labels, bias_V=our_bias, softcap=softcap, logit_scale=scale, **options
    )
    other = plain_cross_entropy(
        theirs.hidden, theirs.weight, theirs.labels, bias=their_bias, softcap=softcap, logit_scale=scale
    )
    for loss in (one, other):
        backward: Callable[[], None] = (loss / 7).backward
        backward()
    return one, other


@pytest.mark.parametrize(
    ("softcap", "with_bias", "scale", "chunk"),
    list(itertools.product([None, 5.0], [False, True], [1.0, 0.25], [5, 64])),
)
def test_value_and_gradients_are_those_of_the_plain_loss(
    softcap: float | None, with_bias: bool, scale: float, chunk: int
) -> None:
    ours, theirs = Head(), Head()
    loss, plain = both(ours, theirs, with_bias=with_bias, softcap=softcap, scale=scale, chunk_tokens=chunk)
    assert loss.dtype == torch.float32
    assert_same([loss, *ours.gradients()], [plain, *theirs.gradients()])


@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 10, 11])
def test_any_number_of_tokens_divides_into_chunks(tokens: int) -> None:
    ours, theirs = Head(tokens), Head(tokens)
    loss, plain = both(ours, theirs, softcap=5.0, chunk_tokens=5)
    assert_same([loss, *ours.gradients()], [plain, *theirs.gradients()])


def test_without_tokens_the_loss_is_a_zero_with_zero_gradients() -> None:
    head = Head(0)
    loss = summed_cross_entropy(head.hidden, head.weight, head.labels, bias_V=head.bias, softcap=5.0)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert [each.shape for each in head.gradients()] == [(0, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,)]
    assert not any(each.any() for each in head.gradients())


def test_the_logits_of_all_tokens_are_never_held() -> None:
    head = Head(40)
    products = Products()
    with products:
        torch.autograd.backward(
            summed_cross_entropy(head.hidden, head.weight, head.labels, softcap=5.0, chunk_tokens=20)
        )
    assert products.largest == 20 * VOCABULARY


def test_a_chunk_takes_three_matmuls_with_a_frozen_head_two_and_without_gradients_one() -> None:
    def matmuls(head: Head) -> int:
        products = Products()
        with products:
            loss = summed_cross_entropy(head.hidden, head.weight, head.labels, chunk_tokens=7)
            if loss.requires_grad:
                torch.autograd.backward(loss)
        return products.matmuls

    frozen = Head()
    frozen.weight.requires_grad_(False)
    with torch.no_grad():
        without = matmuls(Head())
    assert [matmuls(Head()), matmuls(frozen), without] == [2 * 3, 2 * 2, 2 * 1]


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_get_theirs() -> None:
    ours, theirs = Head(), Head()
    ours.weight.requires_grad_(False)
    both(ours, theirs, softcap=5.0, chunk_tokens=5)
    assert ours.weight.grad is None
    assert_same(ours.gradients(), theirs.gradients()[:1])


def test_an_evaluation_gets_the_same_loss_without_a_graph() -> None:
    head = Head()
    trained = summed_cross_entropy(head.hidden, head.weight, head.labels, softcap=5.0)
    with torch.no_grad():
        evaluated = summed_cross_entropy(head.hidden, head.weight, head.labels, softcap=5.0)
    assert evaluated.item() == trained.item()
    assert not evaluated.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_input_is_changed(dtype: torch.dtype) -> None:
    head, untouched = Head(dtype=dtype), Head(dtype=dtype)
    torch.autograd.backward(
        summed_cross_entropy(head.hidden, head.weight, head.labels, bias_V=head.bias, softcap=5.0, logit_scale=0.5)
    )
    for name in ("hidden", "weight", "bias", "labels"):
        assert torch.equal(getattr(head, name), getattr(untouched, name))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_under_autocast_the_error_is_no_larger_than_that_of_the_plain_loss(softcap: float | None) -> None:
    ours, theirs, exact = Head(), Head(), Head()
    with torch.autocast("cpu", torch.bfloat16):
        loss, plain = both(ours, theirs, with_bias=True, softcap=softcap, chunk_tokens=5)
    _, truth = both(Head(), exact, with_bias=True, softcap=softcap)
    found, their_own = [loss, *ours.gradients()], [plain, *theirs.gradients()]
    for one, other, true in zip(found, their_own, [truth, *exact.gradients()], strict=True):
        assert one.dtype == torch.float32
        assert (one - true).norm() <= 1.2 * (other - true).norm() + 1e-3 * true.norm()
    assert_same(found, their_own, relative=0.02)


def test_many_chunks_do_not_round_the_gradient_of_a_bf16_head_more_than_one_chunk_does() -> None:
    def error(chunk: int) -> float:
        head, exact = Head(400, torch.bfloat16), Head(400, torch.bfloat16)
        torch.autograd.backward(summed_cross_entropy(head.hidden, head.weight, head.labels, chunk_tokens=chunk))
        torch.autograd.backward(plain_cross_entropy(exact.hidden.double(), exact.weight.double(), exact.labels))
        assert head.weight.grad is not None
        assert exact.weight.grad is not None
        return float((head.weight.grad - exact.weight.grad).float().norm() / exact.weight.grad.float().norm())

    assert error(4) <= 1.2 * error(400)


def test_the_loss_is_that_of_gemma_2() -> None:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=30.0,
    )
    torch.manual_seed(0)
    model: Any = Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(500)  # logits that the softcap bends; the embeddings are tied
    ids = torch.randint(VOCABULARY, (2, 9))
    expected = model(input_ids=ids, labels=ids, num_items_in_batch=1).loss
    expected.backward()
    gradients = [each.grad for each in model.parameters()]
    model.zero_grad()
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = summed_cross_entropy(
        hidden, model.lm_head.weight, ids[:, 1:].flatten(), softcap=config.final_logit_softcapping, chunk_tokens=5
    )
    torch.autograd.backward(loss)
    assert_same([loss, *(each.grad for each in model.parameters())], [expected, *gradients])


def test_gradients_of_two_calls_add_up() -> None:
    head = Head()
    for _ in range(2):
        torch.autograd.backward(summed_cross_entropy(head.hidden, head.weight, head.labels))
    once = Head()
    torch.autograd.backward(summed_cross_entropy(once.hidden, once.weight, once.labels))
    assert_same(head.gradients(), [2 * each for each in once.gradients()])


def test_a_head_in_fp64_stays_in_fp64_and_its_gradients_are_the_differences_of_its_loss() -> None:
    # gradcheck runs backward twice over one graph, which this loss refuses.
    ours, theirs = Head(dtype=torch.float64), Head(dtype=torch.float64)
    loss, plain = both(ours, theirs, with_bias=True, softcap=5.0, scale=0.5, chunk_tokens=5)
    assert_same([loss, *ours.gradients()], [plain, *theirs.gradients()], relative=1e-13)
    inputs = [ours.hidden, ours.weight, ours.bias]
    steps = [1e-5 * torch.randn_like(each) for each in inputs]
    ends = [
        summed_cross_entropy(
            ours.hidden + sign * steps[0],
            ours.weight + sign * steps[1],
            ours.labels,
            bias_V=ours.bias + sign * steps[2],
            softcap=5.0,
            logit_scale=0.5,
        ).item()
        for sign in (1, -1)
    ]
    slope = sum((each * step).sum().item() for each, step in zip(ours.gradients(), steps, strict=True))
    assert (ends[0] - ends[1]) / 2 / 7 == pytest.approx(slope, rel=1e-7)


def test_the_gradients_can_be_taken_only_once() -> None:
    head = Head()
    loss = summed_cross_entropy(head.hidden, head.weight, head.labels)
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="were taken before"):
        torch.autograd.backward(loss)


def test_a_label_outside_the_vocabulary_is_an_error() -> None:
    head = Head()
    with pytest.raises(RuntimeError, match="out of bounds"):
        summed_cross_entropy(head.hidden, head.weight, torch.full_like(head.labels, -100))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, when it resumes after a graph break
def test_a_compiled_caller_is_not_compiled_anew_for_another_number_of_tokens() -> None:
    compiled_graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        compiled_graphs.append(graph)
        return graph.forward

    def loss(head: Head) -> torch.Tensor:
        return compiled(head.hidden, head.weight, head.labels)

    def forward(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 2 * summed_cross_entropy(hidden.sin(), weight, labels, softcap=5.0, chunk_tokens=4)

    torch.compiler.reset()
    compiled: Callable[..., torch.Tensor] = torch.compile(forward, backend=backend, dynamic=True)
    first = loss(Head(5))
    before = len(compiled_graphs)
    again = [loss(Head(tokens)) for tokens in (9, 13)]
    assert len(compiled_graphs) == before
    expected = [forward(head.hidden, head.weight, head.labels) for head in (Head(5), Head(9), Head(13))]
    assert_same([first, *again], expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_on_a_gpu_value_and_gradients_are_those_of_the_plain_loss(softcap: float | None) -> None:
    ours, theirs = Head(device="cuda"), Head(device="cuda")
    loss, plain = both(ours, theirs, with_bias=True, softcap=softcap, chunk_tokens=5)
    assert_same([loss, *ours.gradients()], [plain, *theirs.gradients()])
