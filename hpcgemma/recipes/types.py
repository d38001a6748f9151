"""The types of a recipe. Each field carries its doc, and its unit, under it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hpcgemma.configfile import Section, Walltime
from hpcgemma.recipes.metrics import check_metric_names


class QuantizationSpec(Section):
    """Weights kept in few bits while adapters train (QLoRA, Dettmers et al. 2023)."""

    bits: Literal[4] = 4
    """Bits per weight."""
    type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit data type."""
    double_quantization: bool = True
    """Quantize the quantization constants too; saves 0.4 bits per weight."""


class FreezeSpec(Section):
    """Parts of the model that keep their weights while the rest is trained. Adapters freeze the model by themselves."""

    embeddings: bool = False
    """The input embeddings; where the output head is tied to them, the head too."""
    head: bool = False
    """The output head."""
    layers: int = Field(0, ge=0)
    """The first so many decoder layers."""
    modules: list[str] = []
    """Modules by name, such as vision_tower; with all that is in them."""


class ModelSpec(Section):
    """Which model, and how it is loaded."""

    kind: Literal["text", "vision"] = "text"
    """text: a causal language model, also out of a checkpoint with a vision tower; vision: images and text."""

    path: str | None = None
    """Folder, or hub name, of pretrained weights; null starts from random weights of the shape in `config`."""
    revision: str | None = None
    """Commit or tag of the hub repository; null is the newest in the cache."""
    config: dict[str, Any] = {}
    """Fields of the transformers config: the whole shape of a random start (with `model_type`); for pretrained
    weights, what their config is expected to say, checked when they are loaded."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Attention implementation; auto takes one that applies the model's softcap exactly."""
    quantization: QuantizationSpec | None = None
    """Quantization of the frozen weights; null keeps them whole."""
    freeze: FreezeSpec = FreezeSpec()
    """What is not trained, where all parameters would be."""


class LoraSpec(Section):
    """Low-rank adapters (Hu et al. 2021), through peft."""

    rank: int = Field(16, gt=0)
    """Rank r of the adapters."""
    alpha: int = Field(32, gt=0)
    """Scaling; the adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """Names of the linear layers that get an adapter."""
    dora: bool = False
    """Train the weights' magnitude apart from their direction (DoRA, Liu et al. 2024)."""
    modules_to_save: list[str] = []
    """Modules trained whole beside the adapters; tied weights stay tied."""


class GeneratorSpec(Section):
    """Rows that hpcgemma draws itself, the same on every machine."""

    name: Literal["svg_captions", "image_captions"] = "svg_captions"
    """Which generator: the same drawings as SVG, or as images for a model with a vision tower."""
    train_rows: int = Field(2048, gt=0)
    """Training rows to draw."""
    eval_rows: int = Field(256, gt=0)
    """Held-out rows to draw; none of them is among the training rows."""
    seed: int = 0
    """Seed of the drawings."""


RowFormat = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "dolly",
    "prompt_completion",
    "translation",
    "text",
    "svg_caption",
    "image_caption",
]


class MixturePart(Section):
    """Some of the training files, and how often their rows are seen."""

    path: str
    """File, or pattern of files such as data/*.jsonl."""
    weight: float = Field(1.0, gt=0)
    """How often an epoch passes over these rows: 2 takes each twice, 0.5 another half of them in each epoch."""


class LanguagesSpec(Section):
    """Languages of translations, as codes such as en, hau, de_DE or zh-Hant. A code names the text of a row, too."""

    source: str | None = None
    """Language to translate from; null: the row's field `source_field`, or the first of its two."""
    target: str | None = None
    """Language to translate into; null: the row's field `target_field`, or the second of its two."""
    source_field: str = "src_lang_code"
    """Field of a row with the code of its source language, where rows have one."""
    target_field: str = "tgt_lang_code"
    """Field of a row with the code of its target language, where rows have one."""


class DataSpec(Section):
    """Where the rows come from and how they become tokens."""

    train: str | list[str | MixturePart] | None = None
    """Files of training rows: one, a pattern such as data/*.jsonl, or a list of these, each with a weight if wanted;
    JSON lines, JSON, Parquet, CSV, TSV or text, also as .gz or .zst; relative to the folder of submission."""
    eval: str | list[str] | None = None
    """Files of held-out rows; null: a share of the training rows."""
    eval_share: float = Field(0.05, gt=0, lt=1)
    """Share of the training rows held out where `eval` is null; which ones depends on their content alone."""
    generator: GeneratorSpec | None = None
    """Rows drawn by hpcgemma; in place of `train` and `eval`."""
    format: Literal["auto"] | RowFormat = "auto"
    """What a row holds; auto looks at the first rows and says what it found, and why."""
    fields: dict[str, str] = {}
    """Names of the rows' own fields where they differ from those of the format, as in caption: name."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What of a text file is a row."""
    instruction: str | None = None
    """What the user turn of a caption's row asks; null: a sentence that fits the format."""
    prompt_template: str | None = None
    """The user turn, made of a row's fields: in Jinja, or with {field} for a field; null: the format's own."""
    languages: LanguagesSpec = LanguagesSpec()
    """Languages of translations."""
    learn: Literal["all", "last"] = "all"
    """Which answers of a conversation are learned: all of the assistant's turns, or the last."""
    max_length: int = Field(1024, gt=1)
    """Tokens per row, and of what rows are packed into."""
    too_long: Literal["auto", "skip", "truncate", "split"] = "auto"
    """What becomes of a longer row; split: a document is cut into pieces, a conversation between its exchanges;
    auto: split for text, skip for all else."""
    packing: bool = False
    """Lay rows one after the other until max_length is full, without one seeing another: no padding, more speed. A
    global_batch then counts what was packed."""
    deduplicate: bool = True
    """Leave out rows that are the same as an earlier one."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be left out, duplicates apart; above it the data are refused."""
    num_workers: int = Field(0, ge=0)
    """Processes per rank that collate batches; 0 collates in the trainer itself."""
    pin_memory: bool = False
    """Collate into pinned host memory, which copies to a GPU faster."""


class TokenizerSpec(Section):
    """Which tokenizer: the model's own, or a small one trained from the rows."""

    path: str | None = None
    """Folder or hub name; null is that of the model."""
    train_vocab_size: int | None = Field(None, ge=300)
    """Train a byte-pair tokenizer with Gemma's special tokens to this size from the training rows."""


class OptimizerSpec(Section):
    """The optimizer."""

    name: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    """adamw (Loshchilov and Hutter 2019); adamw_8bit: its states in 8 bits, by bitsandbytes (Dettmers et al. 2022);
    adafactor: its second moment as one row and one column per matrix (Shazeer and Stern 2018)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    """Decay of the first and second moment. Only for adamw and adamw_8bit."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator. Only for adamw and adamw_8bit."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; not applied to norms and biases."""
    fused: bool = True
    """One kernel for all parameters, where the device has it. Only for adamw."""
    clip_threshold: float = Field(1.0, gt=0)
    """Root mean square to which a parameter's update is clipped. Only for adafactor."""
    decay_exponent: float = Field(0.8, gt=0, le=1)
    """At step t the second moment decays by 1 - t ** -decay_exponent. Only for adafactor."""


class ScheduleSpec(Section):
    """Learning rate over the steps."""

    name: Literal["constant", "linear", "cosine", "cosine_with_restarts", "wsd"] = "cosine"
    """Shape after the warm-up; wsd: constant, then a linear fall (warmup, stable, decay; Hu et al. 2024)."""
    warmup: float = Field(0.0, ge=0)
    """Below 1: share of all steps; from 1 on: steps."""
    num_cycles: int = Field(1, gt=0)
    """Cycles. Only for cosine_with_restarts."""
    decay: float = Field(0.1, gt=0)
    """Length of the fall. Up to 1: share of all steps; above: steps. Only for wsd."""


class TrainingSpec(Section):
    """The loop."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps to take at most; null: as many as the epochs give."""
    global_batch: int = Field(16, gt=0)
    """Rows per optimizer step, over all GPUs; a multiple of micro_batch x GPUs, and under xla of 128."""
    micro_batch: int = Field(1, gt=0)
    """Rows per GPU and forward pass."""
    eval_micro_batch: int = Field(1, gt=0)
    """Rows per GPU and forward pass of an evaluation."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are clipped to this norm; null does not clip."""
    precision: Literal["bf16", "fp32", "fp16"] = "bf16"
    """Arithmetic of the model. bf16: frozen weights too are held in bfloat16; fp32: all in float32. fp16 is refused:
    Gemma 3 overflows in it."""
    trained_weights: Literal["fp32", "bf16"] = "fp32"
    """What trained weights, their gradients and the optimizer's states are held in. bf16 halves that memory, but an
    update smaller than 1/256 of its weight is lost. Under deepspeed always fp32, beside a copy in what computes."""
    tf32: bool = True
    """TensorFloat-32 matrix products on GPUs that have them."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    compile: bool = False
    """torch.compile the model."""
    liger_kernels: bool = False
    """Liger's fused layers (norms, rotary embedding, GeGLU); needs a GPU and the package liger-kernel."""
    neftune_alpha: float | None = Field(None, gt=0)
    """Noise on the input embeddings while training (NEFTune, Jain et al. 2023); null adds none."""
    loss_chunk_tokens: int = Field(1024, gt=0)
    """Learned tokens whose logits are in memory at once; the logits of a batch are never held whole."""
    empty_cache_every_steps: int | None = Field(None, gt=0)
    """Return cached GPU memory to the device every so many steps; null never does."""
    gpu_memory_fraction: float | None = Field(None, gt=0, le=1)
    """Cap of the memory a process may take of its GPU; the rest is a buffer. null: no cap."""
    log_every_steps: int = Field(1, gt=0)
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Seed of row order, dropout and random starts."""


class EarlyStoppingSpec(Section):
    """Stop when the evaluation loss no longer falls."""

    patience: int = Field(gt=0)
    """Evaluations without improvement before the end."""
    threshold: float = Field(0.0, ge=0)
    """A fall of at most this much does not count."""


class GenerationSpec(Section):
    """Answers generated for held-out rows, before and after the training, and scored against the true ones."""

    rows: int = Field(64, gt=0)
    """Held-out rows to answer."""
    max_new_tokens: int = Field(64, gt=0)
    """Tokens of an answer at most."""
    every_steps: int | None = Field(None, gt=0)
    """Steps between answers during the training; null: only before and after it."""
    min_words: int | None = Field(None, ge=0)
    """Fewest words of an answer that follows its instruction; null: half as many as the true one has."""
    max_words: int | None = Field(None, gt=0)
    """Most words of an answer that follows its instruction; null: twice as many as the true one has."""


class TargetSpec(Section):
    """What a metric is to reach; one limit at least."""

    at_least: float | None = None
    """Lowest value that meets the target."""
    at_most: float | None = None
    """Highest value that meets the target."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> TargetSpec:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a target needs at_least or at_most, such as {at_least: 20}")
        return self


class EvaluationSpec(Section):
    """How the model is judged during and after the training."""

    every_steps: int | None = Field(None, gt=0)
    """Steps between evaluations of the held-out loss; null: only at the end."""
    rows: int | None = Field(None, gt=0)
    """Held-out rows that an evaluation during the training takes, the first so many; null: all."""
    best_at_end: bool = True
    """final/ holds the weights of the lowest held-out loss, not the last ones."""
    early_stopping: EarlyStoppingSpec | None = None
    """null trains to the end."""
    generation: GenerationSpec | None = None
    """null generates nothing."""
    targets: dict[str, TargetSpec] = {}
    """What is to be reached at the end, by metric, as in {bleu4: {at_least: 20}, perplexity: {at_most: 8}}."""
    clip_model: str | None = "openai/clip-vit-base-patch16"
    """Folder or hub name of the CLIP that judges captions of SVG drawings, read from this machine's disks alone; null:
    captions get no CLIP score."""

    @field_validator("targets")
    @classmethod
    def _targets_are_metrics(cls, targets: dict[str, TargetSpec]) -> dict[str, TargetSpec]:
        check_metric_names(targets)
        return targets


MonitorName = Literal["attention_entropy", "softcap_saturation", "sliding_window"]


class MonitorsSpec(Section):
    """What is measured of a model beside its loss, on a few held-out rows, between two steps."""

    every_steps: int = Field(50, gt=0)
    """Steps between measurements; the first is made before the training, the last at its end."""
    rows: int = Field(8, gt=0)
    """Held-out rows that are measured, the first so many, one at a time. Each costs about two forward passes."""
    measure: list[MonitorName] = Field(["attention_entropy", "softcap_saturation", "sliding_window"], min_length=1)
    """attention_entropy: how many keys the heads look at; softcap_saturation: how near attention scores and logits are
    to their caps; sliding_window: how far they look, and what the window hides. What a model has not is left out."""


class CheckpointSpec(Section):
    """When the state is saved, and how much of it is kept."""

    every_steps: int | Literal["auto"] = "auto"
    """Steps between checkpoints; at most this much is computed again after a crash. auto: what loses the least time, by
    the measured cost of a save and how often something ends the run without warning (continuation of the profile)."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints kept, beside the best ones. Never below two."""
    keep_best: int = Field(1, ge=1)
    """Checkpoints of the lowest held-out losses kept; one that is among them is saved whenever it comes."""
    asynchronous: bool = False
    """Write checkpoints beside the training, from a copy in host memory, which holds the saved state once more; at a
    stop and at the end the training waits. Under xla it always waits."""

    @field_validator("every_steps", mode="before")
    @classmethod
    def _is_steps_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError("is neither auto nor a number of steps")
        return value


class WatchSpec(Section):
    """When silent ranks are taken to hang: their stacks are written, they are killed and started again."""

    training_s: float | None = Field(60.0, ge=0)
    """Seconds without a step after which ranks that train are taken to hang; five times the 99th percentile of a step's
    time where that is longer, and at least 300 s where steps are compiled. null or 0: never."""
    elsewhere_s: float | None = Field(1800.0, ge=0)
    """The same in any other phase, such as loading, compiling, evaluating or saving, and up to the first steps. null or
    0: never."""


class StrategySpec(Section):
    """How the work is spread over the GPUs."""

    name: Literal["auto", "ddp", "fsdp", "deepspeed", "xla"] = "auto"
    """ddp: a whole copy on each GPU; fsdp: weights, gradients and optimizer sharded by torch; deepspeed: sharded by
    ZeRO; xla: a copy on each TPU core; auto chooses ddp or fsdp and says why."""
    zero_stage: Literal[1, 2, 3] | None = None
    """What ZeRO shards: 1 optimizer, 2 and gradients, 3 and weights. Only for deepspeed."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory. Only for deepspeed; fsdp offloads it with the parameters."""
    offload_parameters: bool = False
    """Keep sharded parameters in host memory. Only for fsdp, and for deepspeed with zero_stage 3."""
    reduce_bucket_size: int | None = Field(None, gt=0)
    """Elements reduced at once. Only for deepspeed."""
    allgather_bucket_size: int | None = Field(None, gt=0)
    """Elements gathered at once. Only for deepspeed."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights between forward and backward: less memory, one gathering more. Only for fsdp."""
    hybrid_shard: bool = False
    """Shard within each node and copy between nodes: less traffic between nodes. Only for fsdp."""
    prefetch_layers: int = Field(1, ge=0)
    """Layers gathered ahead of the one that computes. Only for fsdp."""
    layer_class: str | None = None
    """Class of the layers that are sharded one by one; null finds the model's decoder layers. Only for fsdp."""
    expected_world_size: int | None = Field(None, gt=0)
    """GPUs that the recipe's numbers were chosen for: others are warned of, and refused under fsdp."""


class ResourcesSpec(Section):
    """What the run asks of a cluster."""

    nodes: int = Field(1, gt=0)
    """Nodes."""
    gpus_per_node: int = Field(1, gt=0)
    """GPUs of each node; one rank (process) runs per GPU."""
    memory_per_gpu_mb: int | None = Field(None, gt=0)
    """Host memory per GPU in MB; null: the profile's share."""
    walltime: Walltime = "01:00:00"
    """Time limit of one job, as in sbatch's --time; the run goes on in further jobs."""


class Recipe(Section):
    """What a run wants."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Name of the recipe, as its file is called."""
    description: str
    """One sentence: what is trained, on what."""
    model: ModelSpec
    """Which model."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Which tokenizer."""
    lora: LoraSpec | None = None
    """Adapters; null trains all parameters."""
    data: DataSpec
    """Which rows."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning rate over the steps."""
    training: TrainingSpec = TrainingSpec()
    """The loop."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Evaluation."""
    monitors: MonitorsSpec | None = None
    """Measurements of attention and softcaps on the way; null: none."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Checkpoints."""
    watch: WatchSpec = WatchSpec()
    """Ranks that hang."""
    strategy: StrategySpec = StrategySpec()
    """Spread over the GPUs."""
    resources: ResourcesSpec = ResourcesSpec()
    """What is asked of the cluster."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""
