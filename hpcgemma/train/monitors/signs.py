"""Signs of trouble in what the monitors read, each a sentence with a remedy. Pure.

A model is compared with itself before the training: heads that look at one token, and large logits, are as often a
skill as a fault; that there are many more of them than before is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcgemma.train.monitors.reading import Reading

COLLAPSE_RISE = 0.05
"""Rise of the share of collapsed heads that is told."""
SATURATION_RISE = 0.05
"""Rise of the share of saturated attention scores that is told."""
CERTAINTY_RISE = 0.2
"""Rise of the share of positions with a saturated largest logit that is told."""
LEAST_FAR = 0.01
"""Share of the full layers' attention beyond the window from which on its loss is told."""
FAR_LEFT = 0.5
"""What must be left of that share."""

_GENTLER = "in a new run, a lower optimizer.learning_rate or a longer schedule.warmup"


def signs_of_trouble(now: Reading, before: Reading) -> list[str]:
    """Return sentences on what has become worse, each with what to do.

    Args:
        now: The newest reading.
        before: The first one of the run, mostly of the untrained model.
    """
    if now.step == before.step:
        return []
    since = "before the training" if before.step == 0 else f"at step {before.step}"
    found: list[str] = []
    if "attention_entropy" in now.measure:
        found += _of_entropy(now, before, since)
    if "softcap_saturation" in now.measure:
        found += [*_of_scores(now, before, since), *_of_logits(now, before, since)]
    if "sliding_window" in now.measure:
        found += _of_distance(now, before, since)
    return found


def _of_entropy(now: Reading, before: Reading, since: str) -> Iterator[str]:
    collapsed, were = (sum(layer.collapsed for layer in each.layers) for each in (now, before))
    if collapsed - were > COLLAPSE_RISE * now.heads:
        counts = [layer.collapsed for layer in now.layers]
        worst = counts.index(max(counts))
        yield (
            f"{collapsed} of {now.heads} heads look at one token only, {were} did {since}; most in layer {worst}: "
            f"attention entropy collapse, which goes before divergence (Zhai et al. 2023); {_GENTLER}"
        )


def _of_scores(now: Reading, before: Reading, since: str) -> Iterator[str]:
    pairs = [
        (layer.softcap_saturated - was.softcap_saturated, number)
        for number, (layer, was) in enumerate(zip(now.layers, before.layers, strict=True))
        if layer.softcap_saturated is not None and was.softcap_saturated is not None
    ]
    rise, worst = max(pairs, default=(0.0, 0))
    if rise > SATURATION_RISE:
        yield (
            f"in layer {worst} {now.layers[worst].softcap_saturated:.1%} of the attention scores are larger than their "
            f"softcap, {before.layers[worst].softcap_saturated:.1%} {since}: what is left of their gradients is less "
            f"than half; {_GENTLER}, or a larger optimizer.weight_decay"
        )


def _of_logits(now: Reading, before: Reading, since: str) -> Iterator[str]:
    if now.logits is None or before.logits is None:
        return
    if now.logits.top_saturated - before.logits.top_saturated > CERTAINTY_RISE:
        yield (
            f"at {now.logits.top_saturated:.0%} of the learned positions the largest logit is larger than the final "
            f"softcap, at {before.logits.top_saturated:.0%} {since}: the model is as sure as it can be; if the "
            "held-out loss rises it learns by heart: fewer training.epochs, more rows, or evaluation.early_stopping"
        )


def _of_distance(now: Reading, before: Reading, since: str) -> Iterator[str]:
    far, was = (
        sum(layer.beyond_window or 0.0 for layer in each.layers)
        / max(1, sum(layer.beyond_window is not None for layer in each.layers))
        for each in (now, before)
    )
    if was > LEAST_FAR and far < FAR_LEFT * was:
        yield (
            f"full layers put {far:.1%} of their attention beyond the sliding window, {was:.1%} {since}: the model "
            "unlearns to look far; train on longer rows: a larger data.max_length, or rows that need it"
        )
