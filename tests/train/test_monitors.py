"""Monitors read off what a plain computation finds, alike under every strategy, and leave the training as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb, repeat_kv

from hpcgemma import files
from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.anatomy import decoder_of, head_of
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.monitors import attention, logits
from hpcgemma.train.monitors.attention import LayerSums, WatchedAttention, watched
from hpcgemma.train.monitors.logits import WatchedLogits
from hpcgemma.train.monitors.reading import LayerReading, LogitReading, Reading, read_layers, read_logits
from hpcgemma.train.monitors.signs import signs_of_trouble
from hpcgemma.train.objective import Objective
from tests.train.launch import Run, assert_same
from tests.train.models import SHAPES, VISION_SHAPES, built, some_ids

LENGTH, WIDTH, WINDOW, SOFTCAP = 37, 40, 8, 2.0
CONFIG: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "initializer_range": 0.3,  # scores large enough for the caps to bite
    "attention_dropout": 0.0,
}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ALL = ["attention_entropy", "softcap_saturation", "sliding_window"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make several chunks of a row, the last of them smaller."""
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 4 * WIDTH * 7)
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 97 * 2)


def tiny(model_type: str, kernel: str) -> Any:
    torch.manual_seed(0)
    caps = {"attn_logit_softcapping": SOFTCAP, "final_logit_softcapping": 5.0} if model_type == "gemma2" else {}
    config = AutoConfig.for_model(model_type, **CONFIG, **caps)
    build: Any = AutoModelForCausalLM.from_config
    return build(config, attn_implementation=kernel).eval()


def row() -> torch.Tensor:
    """Return a row of 37 tokens, padded to 40."""
    ids_1T = torch.randint(1, 97, (1, WIDTH), generator=torch.Generator().manual_seed(1))
    ids_1T[:, LENGTH:] = 0
    return ids_1T


def measured(model: Any, *, begin: int = LENGTH) -> tuple[list[LayerReading], LogitReading | None, float]:
    """Return what the monitors read, and the loss meanwhile."""
    watch, on_logits = WatchedAttention(LENGTH), WatchedLogits(torch.device("cpu"))
    objective = Objective(model, TrainingSpec(precision="fp32"), autocast=False)
    positions_N = torch.arange(5, 20)
    watch.begin(begin)
    on_logits.begin(positions_N)
    with torch.no_grad(), watched(model, watch), on_logits.of(model):
        loss = float(objective(row(), positions_N, row()[0, positions_N + 1]))
    return read_layers(watch.layers), read_logits(on_logits.counts_5), loss


def plain(model: Any) -> list[dict[str, Any]]:
    """Return the same of each layer, from the probabilities that eager attention gives away, query by query."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        each = model(input_ids=row(), use_cache=False, output_attentions=True).attentions
    return [
        plain_layer(probabilities[0].double(), WINDOW if place == 0 else None)
        for place, probabilities in enumerate(each)
    ]


def plain_layer(given: torch.Tensor, window: int | None) -> dict[str, Any]:
    heads = len(given)
    entropies: list[list[float]] = [[] for _ in range(heads)]
    relative, mass = [], [0.0] * LENGTH
    first = 0.0
    for query in range(LENGTH):
        seen = min(query + 1, window or WIDTH)
        for head in range(heads):
            p = [float(x) for x in given[head, query]]
            entropy = -sum(x * math.log(x) for x in p if x > 0)
            entropies[head].append(entropy)
            if seen > 1:
                relative.append(entropy / math.log(seen))
            first += p[0] / heads
            for key in range(1, query + 1):
                mass[query - key] += p[key] / heads
    return {
        "entropy_nats": [sum(each) / LENGTH for each in entropies],
        "entropy_relative": sum(relative) / len(relative),
        "collapsed": sum(sum(each) / LENGTH < 0.1 for each in entropies),
        "truncated": 0.0 if window is None else (LENGTH - window) / LENGTH,
        "first_token": first / LENGTH,
        "beyond_half": None if window is None else sum(mass[window // 2 + 1 :]) / LENGTH,
        "beyond_window": sum(mass[WINDOW:]) / LENGTH if window is None else None,
        "distances": [
            next(d for d in range(LENGTH) if sum(mass[: d + 1]) >= share * sum(mass)) for share in (0.5, 0.9, 0.99)
        ],
    }


@pytest.mark.parametrize(
    ("model_type", "kernel"), [("gemma2", "eager"), ("gemma3_text", "eager"), ("gemma3_text", "sdpa")]
)
def test_entropy_and_distances_are_those_of_the_probabilities_that_eager_attention_gives(
    model_type: str, kernel: str
) -> None:
    model = tiny(model_type, kernel)
    layers, _, _ = measured(model)
    for layer, expected in zip(layers, plain(model), strict=True):
        for name, value in expected.items():
            found = getattr(layer, name)
            assert found == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-6)), name
    assert [layer.window for layer in layers] == [WINDOW, None]


@pytest.mark.parametrize(
    ("model_type", "kernel"), [("gemma2", "eager"), ("gemma3_text", "eager"), ("gemma3_text", "sdpa")]
)
def test_the_loss_of_watched_attention_is_the_models_own(model_type: str, kernel: str) -> None:
    model = tiny(model_type, kernel)
    _, _, loss = measured(model)
    objective = Objective(model, TrainingSpec(precision="fp32"), autocast=False)
    positions_N = torch.arange(5, 20)
    with torch.no_grad():
        own = float(objective(row(), positions_N, row()[0, positions_N + 1]))
    assert loss == pytest.approx(own, rel=1e-5)
    assert model.config._attn_implementation == kernel


def test_saturation_is_that_of_scores_and_logits_before_their_caps() -> None:
    model = tiny("gemma2", "eager")
    layers, found, _ = measured(model)
    for place, (layer, raw_HTT) in enumerate(zip(layers, raw_scores(model), strict=True)):
        sizes = [
            abs(float(raw_HTT[head, query, key])) / SOFTCAP
            for head in range(4)
            for query in range(LENGTH)
            for key in range(max(0, query - WINDOW + 1) if place == 0 else 0, query + 1)
        ]
        assert layer.softcap_saturated == pytest.approx(sum(size > 1 for size in sizes) / len(sizes), rel=1e-5)
        assert layer.softcap_used == pytest.approx(sum(map(math.tanh, sizes)) / len(sizes), rel=1e-5)
        assert 0.1 < sum(size > 1 for size in sizes) / len(sizes) < 0.9
    with torch.no_grad():
        hidden_1TD = model.model(input_ids=row(), use_cache=False).last_hidden_state
        size_NV = (hidden_1TD[0, 5:20] @ head_of(model).weight.T).double() / 5.0
    assert found is not None
    assert found.saturated == pytest.approx(float((size_NV.abs() > 1).double().mean()), rel=1e-5)
    assert found.used == pytest.approx(float(size_NV.tanh().abs().mean()), rel=1e-5)
    assert found.top_saturated == pytest.approx(float((size_NV.max(-1).values > 1).double().mean()), rel=1e-5)


def raw_scores(model: Any) -> Iterator[torch.Tensor]:
    """Yield each layer's scores before the softcap, H x T x T, from what its projections put out."""
    seen: dict[tuple[int, str], torch.Tensor] = {}
    handles = [
        getattr(layer.self_attn, f"{name}_proj").register_forward_hook(
            lambda _module, _inputs, output, key=(place, name): seen.__setitem__(key, output)
        )
        for place, layer in enumerate(model.model.layers)
        for name in ("q", "k")
    ]
    with torch.no_grad():
        model(input_ids=row(), use_cache=False)
        cos, sin = model.model.rotary_emb(torch.zeros(1, WIDTH, 32), torch.arange(WIDTH)[None])
        for place in range(2):
            queries, keys = (seen[place, name].view(1, WIDTH, -1, 8).transpose(1, 2) for name in ("q", "k"))
            queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
            yield (queries @ repeat_kv(keys, 2).transpose(2, 3))[0] * 8**-0.5
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("shape", [*SHAPES, *VISION_SHAPES])
def test_attention_of_any_model_comes_out_as_its_own(shape: str, prepared: PreparedData) -> None:
    model = built(shape, prepared).model.eval()
    ids_1T = some_ids(rows=1, tokens=40)
    watch = WatchedAttention(40)
    watch.begin(40)
    with torch.no_grad():
        own_1TD = decoder_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
        with watched(model, watch):
            seen_1TD = decoder_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
    torch.testing.assert_close(seen_1TD, own_1TD, rtol=1e-4, atol=1e-5)
    assert len(watch.layers) == 2


def test_a_row_that_does_not_count_leaves_the_sums_at_nothing() -> None:
    layers, _, _ = measured(tiny("gemma3_text", "sdpa"), begin=0)
    assert [layer.entropy_nats for layer in layers] == [[0.0] * 4] * 2
    assert [layer.first_token for layer in layers] == [0.0] * 2


def test_without_a_softcap_no_saturation_is_read() -> None:
    layers, found, _ = measured(tiny("gemma3_text", "sdpa"))
    assert [layer.softcap_saturated for layer in layers] == [None, None]
    assert found is None
    numbers = reading(layers=layers, logits=found).numbers()
    assert [name for name in numbers if "softcap" in name] == []


def test_more_than_one_row_is_refused() -> None:
    model = tiny("gemma3_text", "sdpa")
    with (
        pytest.raises(ValueError, match="one row at a time"),
        torch.no_grad(),
        watched(model, WatchedAttention(WIDTH)),
    ):
        model(input_ids=row().repeat(2, 1))
    assert model.config._attn_implementation == "sdpa"


FOUR_STEPS: dict[str, Any] = {"training.max_steps": 4, "checkpoint.every_steps": 2, "evaluation.every_steps": 2}
MONITORED: dict[str, Any] = {
    "monitors": {"every_steps": 2, "rows": 3},
    "model.config.sliding_window": 32,
    "model.config.initializer_range": 0.2,
    "model.config.attention_dropout": 0.0,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy.name": "ddp"},
    "fsdp": {"strategy.name": "fsdp"},
    "zero-1": {"strategy.name": "deepspeed", "strategy.zero_stage": 1},
    "zero-2": {"strategy.name": "deepspeed", "strategy.zero_stage": 2},
    "zero-3": {"strategy.name": "deepspeed", "strategy.zero_stage": 3},
}


class Bench:
    """Trainings on one process, which those on two are compared with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.one = cache(self._one)

    def recipe(self, kind: str) -> dict[str, Any]:
        if kind == "full":
            return FOUR_STEPS | MONITORED
        adapters = {
            "model.path": str(self.one("full").folder.final_dir),
            "model.config": {"hidden_size": 32},
            "tokenizer.train_vocab_size": None,
            "lora.rank": 4,
            "lora.modules_to_save": ["embed_tokens", "lm_head"],
            "monitors": {"every_steps": 2, "rows": 3},
        }
        return FOUR_STEPS | adapters

    def _one(self, kind: str) -> Run:
        run = Run(self._folder / kind, self.recipe(kind))
        assert run.train_here()["outcome"] == "finished"
        return run


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("monitors"))


def lines_of(run: Run) -> list[dict[str, Any]]:
    return list(files.read_json_lines(run.folder.monitors_file))


def numbers_of(line: dict[str, Any]) -> list[float]:
    """Return every number of a line that is not a time, in order."""
    found: list[float] = []

    def take(value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in ("seconds", "time", "distances"):
                    take(inner)
        elif isinstance(value, list):
            for inner in value:
                take(inner)
        elif isinstance(value, float | int):
            found.append(value)

    take(line)
    return found


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("full", "ddp"),
        ("full", "fsdp"),
        ("full", "zero-3"),
        slow("lora", "fsdp"),
        slow("lora", "zero-1"),
        slow("lora", "zero-2"),  # it trains in test_recipes.py too, as gemma2_9b_lora_tiny
        slow("lora", "zero-3"),
    ],
)
def test_two_ranks_read_what_one_process_reads(bench: Bench, tmp_path: Path, kind: str, strategy: str) -> None:
    run = Run(tmp_path / "run", bench.recipe(kind) | STRATEGIES[strategy])
    assert run.train(2)["outcome"] == "finished", run.log()
    lines, expected = lines_of(run), lines_of(bench.one(kind))
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line, other in zip(lines, expected, strict=True):
        assert numbers_of(line) == pytest.approx(numbers_of(other), rel=1e-5, abs=1e-6)


def test_a_monitored_training_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    changes = FOUR_STEPS | MONITORED | {"model.config.attention_dropout": 0.1}
    plain, monitored = Run(tmp_path / "plain", changes | {"monitors": None}), Run(tmp_path / "monitored", changes)
    for run in (plain, monitored):
        assert run.train_here()["outcome"] == "finished"
    assert_same(monitored, plain)
    assert not plain.folder.monitors_file.exists()
    assert len(lines_of(monitored)) == 3


@pytest.mark.slow
def test_a_monitored_training_is_the_same_bit_by_bit_when_it_is_compiled(tmp_path: Path) -> None:
    changes = FOUR_STEPS | MONITORED | {"training.compile": True}
    plain, monitored = Run(tmp_path / "plain", changes | {"monitors": None}), Run(tmp_path / "monitored", changes)
    for run in (plain, monitored):
        torch.compiler.reset()
        assert run.train_here()["outcome"] == "finished"
    assert_same(monitored, plain)
    assert len(lines_of(monitored)) == 3


def test_a_resumed_run_measures_again_only_what_comes_after_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    reference = bench.one("full")
    run = reference.copy(tmp_path / "run")
    for path in (run.folder.final_dir, run.folder.checkpoints_dir / "step-4"):
        path.rename(tmp_path / path.name)
    assert run.train_here()["outcome"] == "finished"
    assert_same(run, reference)
    assert [line["step"] for line in lines_of(run)] == [0, 2, 4, 4]
    assert numbers_of(lines_of(run)[3]) == numbers_of(lines_of(run)[2])


def test_readings_are_among_the_metrics_and_their_cost_with_them(bench: Bench) -> None:
    lines = [
        line for line in files.read_json_lines(bench.one("full").folder.metrics_file) if "monitors/seconds" in line
    ]
    assert [line["step"] for line in lines] == [0, 2, 4]
    kept = Reading.of_line(lines_of(bench.one("full"))[1])
    assert {name: value for name, value in lines[1].items() if "/" in name} == kept.numbers()
    assert lines[1]["monitors/window_truncated"] > 0
    assert lines[1]["monitors/seconds"] > 0


def test_attention_that_is_more_than_is_known_here_is_said_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = WatchedAttention.__call__

    def shifted(self: WatchedAttention, *inputs: Any, **options: Any) -> tuple[torch.Tensor, None]:
        output_BTHD, _ = real(self, *inputs, **options)
        return output_BTHD.roll(1, 1), None

    monkeypatch.setattr(WatchedAttention, "__call__", shifted)
    changes = FOUR_STEPS | MONITORED | {"training.max_steps": 1, "evaluation.every_steps": None}
    run = Run(tmp_path / "run", changes)
    assert run.train_here()["outcome"] == "finished"
    assert "monitors: nothing is measured, since Gemma2ForCausalLM's attention is more than" in capsys.readouterr().out
    assert lines_of(run) == []


def test_a_model_without_caps_or_windows_is_measured_and_what_it_has_not_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "training.max_steps": 1,
        "evaluation.every_steps": None,
        "monitors": {"rows": 2},
        "model.config": SHAPES["llama"],
    }
    assert Run(tmp_path / "run", changes).train_here()["outcome"] == "finished"
    said = capsys.readouterr().out
    assert "monitors: llama has no softcap on its attention scores or logits, so no saturation is measured" in said
    assert "monitors: llama has no layer with a sliding window" in said


def reading(step: int = 0, **given: Any) -> Reading:
    """Return a reading of a healthy model of 2 layers of 20 heads."""
    layers = [layer(), layer(window=None, beyond_half=None, beyond_window=0.1)]
    facts: dict[str, Any] = {"measure": ALL, "rows": 2, "tokens": 99, "seconds": 0.5, "layers": layers}
    facts["logits"] = LogitReading(saturated=0.0, used=0.2, top_saturated=0.3)
    return Reading(step=step, **(facts | given))


def layer(**given: Any) -> LayerReading:
    facts: dict[str, Any] = {
        "window": 8,
        "entropy_nats": [2.0] * 20,
        "entropy_relative": 0.6,
        "collapsed": 1,
        "softcap_saturated": 0.01,
        "softcap_used": 0.2,
        "truncated": 0.5,
        "first_token": 0.3,
        "beyond_half": 0.2,
        "beyond_window": None,
        "distances": [1, 4, 7],
    }
    return LayerReading(**(facts | given))


FULL = {"window": None, "beyond_half": None}


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        (
            {"layers": [layer(), layer(**FULL, beyond_window=0.1, collapsed=9)]},
            "10 of 40 heads look at one token only, 2 did before the training; most in layer 1: attention entropy "
            "collapse, which goes before divergence (Zhai et al. 2023); in a new run, a lower optimizer.learning_rate "
            "or a longer schedule.warmup",
        ),
        (
            {"layers": [layer(softcap_saturated=0.2), layer(**FULL, beyond_window=0.1)]},
            "in layer 0 20.0% of the attention scores are larger than their softcap, 1.0% before the training: what is "
            "left of their gradients is less than half; in a new run, a lower optimizer.learning_rate or a longer "
            "schedule.warmup, or a larger optimizer.weight_decay",
        ),
        (
            {"logits": LogitReading(saturated=0.1, used=0.2, top_saturated=0.9)},
            "at 90% of the learned positions the largest logit is larger than the final softcap, at 30% before the "
            "training: the model is as sure as it can be; if the held-out loss rises it learns by heart: fewer "
            "training.epochs, more rows, or evaluation.early_stopping",
        ),
        (
            {"layers": [layer(), layer(**FULL, beyond_window=0.02)]},
            "full layers put 2.0% of their attention beyond the sliding window, 10.0% before the training: the model "
            "unlearns to look far; train on longer rows: a larger data.max_length, or rows that need it",
        ),
    ],
    ids=["collapse", "scores", "logits", "distance"],
)
def test_what_has_become_worse_is_said_with_a_remedy(now: dict[str, Any], sentence: str) -> None:
    assert signs_of_trouble(reading(5, **now), reading()) == [sentence]
    assert signs_of_trouble(reading(5, **now, measure=[]), reading()) == []
    assert signs_of_trouble(reading(0, **now), reading()) == []


def test_what_was_so_before_the_training_is_no_sign() -> None:
    bad = [layer(collapsed=15, softcap_saturated=0.5), layer(**FULL, beyond_window=0.0)]
    assert signs_of_trouble(reading(5, layers=bad), reading(layers=copy.deepcopy(bad))) == []


def test_a_reading_is_told_in_one_line() -> None:
    assert reading().summary() == (
        "attention entropy 2.00 nats, 60% of its most; 2 of 40 heads collapsed | attention softcap 1.00% saturated, "
        "20% used | final softcap 0.00% saturated, 20% used | window hides keys from 50% of queries; its farther half "
        "has 20.0% of the attention | beyond it 10.0% of that of full layers | measured in 0.50 s"
    )
    assert Reading.of_line(reading().line()) == reading()


def test_sums_of_nothing_have_one_number_for_each_head_and_distance() -> None:
    sums = LayerSums.empty(None, None, heads=4, width=9, device=torch.device("cpu"))
    assert [each.numel() for each in sums.tensors()] == [4, 4, 6, 1, 9]
