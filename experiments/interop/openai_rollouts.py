"""Rollouts from a server with OpenAI's completions API, on which the policy is loaded anew every few updates.

  transformers serve --port 8000 &
  python -m experiments.train --config=configs/open_list.py --workdir=runs/served
      "--config.sampling.function=experiments.interop.openai_rollouts.Server(url='http://localhost:8000')"

`transformers serve` takes and gives text alone: the ids are the tokenizer's for that text, and the samples are taken for the
policy's own. A server that takes token ids and gives their log-probs as vLLM does (`ids=True`) loses neither, and may then
also keep an older policy (`every`): importance weights correct for both. vLLM's log-probs must be those of the sampled
distribution, by its `--logprobs-mode=processed_logprobs`, and it keeps one model: override `load` to change its weights.
"""

from concurrent import futures
import json
import pathlib
import shutil
import urllib.error
import urllib.request
import uuid

from qempo_jax.data import special_tokens
from qempo_jax.errors import InputError


class Server:
  """A client that exports the policy, has the server load it, and asks for completions."""

  def __init__(self, url, folder="served", *, ids=False, every=1, parallel=4, dtype="float32", timeout=600.0):
    """Sends nothing yet.

    Args:
      url: of the server, such as http://localhost:8000.
      folder: where policies are exported, the last two of them; the server reads it too.
      ids: the server takes and gives token ids, with log-probs.
      every: updates between exports; above 1 the samples are of an older policy, which needs `ids`.
      parallel: requests at a time.
      dtype: dtype of the exported weights.
      timeout: seconds to wait for an answer.
    """
    if every > 1 and not ids:
      raise InputError("every > 1 samples an older policy, which importance weights need log-probs for: set ids=True")
    self._url, self._folder = url.rstrip("/"), pathlib.Path(folder).expanduser().resolve()
    self._ids, self._every, self._parallel, self._dtype, self._timeout = ids, every, parallel, dtype, timeout
    self._run, self._calls, self._model = uuid.uuid4().hex[:8], 0, ""

  def __call__(self, weights, prompts, rng, *, group_size, max_length, temperature):
    """(token ids [P][G], log-probs [P][G] of each token or None)."""
    number, self._calls = self._calls // self._every, self._calls + 1
    if (self._calls - 1) % self._every == 0:
      target = lambda number: self._folder / f"{self._run}-{number}"  # a name of its own: servers keep models by name
      self._model = self.load(weights.save(target(number), self._dtype))
      shutil.rmtree(target(number - 2), ignore_errors=True)
    tokenizer, stop = weights.policy.tokenizer, special_tokens.end_token_id(weights.policy.tokenizer)
    seeds = rng.integers(2**31, size=(len(prompts), group_size))

    def respond(place):
      row, sample = divmod(place, group_size)
      request = {"model": self._model, "max_tokens": max_length, "temperature": temperature, "top_p": 1.0}
      request |= {"seed": int(seeds[row, sample])}
      if self._ids:
        choice = self._ask(request | {"prompt": prompts[row], "logprobs": 0, "return_tokens_as_token_ids": True})
        ids = [int(token.removeprefix("token_id:")) for token in choice["logprobs"]["tokens"]]
        return ids, choice["logprobs"]["token_logprobs"]
      generation = {"do_sample": True, "top_k": 0, "eos_token_id": list(weights.policy.stop_tokens)}
      text = tokenizer.decode(prompts[row], skip_special_tokens=False)
      choice = self._ask(request | {"prompt": text, "generation_config": json.dumps(generation)})
      ended = [stop] if choice["finish_reason"] == "stop" else []
      return [*tokenizer.encode(choice["text"], add_special_tokens=False), *ended], None

    with futures.ThreadPoolExecutor(self._parallel) as pool:
      found = list(pool.map(respond, range(len(prompts) * group_size)))
    groups = [found[start : start + group_size] for start in range(0, len(found), group_size)]
    ids, log_probs = ([[pair[part] for pair in group] for group in groups] for part in (0, 1))
    return ids, log_probs if self._ids else None

  def load(self, folder: pathlib.Path) -> str:
    """The model to ask for, once the server can load it; `transformers serve` loads the folder that a request names."""
    return str(folder)

  def _ask(self, request) -> dict:
    body = urllib.request.Request(
      f"{self._url}/v1/completions", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
      with urllib.request.urlopen(body, timeout=self._timeout) as answer:
        return json.load(answer)["choices"][0]
    except (OSError, KeyError, IndexError, ValueError) as error:
      said = error.read().decode(errors="replace")[:200] if isinstance(error, urllib.error.HTTPError) else ""
      raise InputError(
        f"the server at {self._url} gave no completion ({error} {said}); start it, or correct url"
      ) from error
