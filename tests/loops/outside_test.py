"""Training on rollouts from outside: exact where they are the policy's, and weighted where they are not."""

import dataclasses
from http import server as http
import json
import threading

import jax
import numpy as np
import pytest

from experiments import outside
from experiments.configured import sampling as build_sampling
from experiments.interop.openai_rollouts import Server
from qempo_jax.errors import InputError
from tests.loops import toy


def _metrics(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def uniform(weights, prompts, rng, *, group_size, max_length, temperature):
  """Responses of uniform tokens, and their log-probs."""
  ids = [[rng.integers(6, size=max_length).tolist() for _ in range(group_size)] for _ in prompts]
  return ids, [[[-np.log(6.0)] * max_length for _ in group] for group in ids]


def bare(weights, prompts, rng, **options):
  """The same without log-probs."""
  return uniform(weights, prompts, rng, **options)[0]


@pytest.mark.parametrize("name", ["uniform", "bare"])
def test_importance_weights_are_measured(tmp_path, name):
  config = toy.small(toy.config(tmp_path))
  config.sampling.function, config.steps = f"tests.loops.outside_test.{name}", 2
  toy.train(config, tmp_path / "run")
  rows = _metrics(tmp_path / "run")
  shares = [row["importance/effective_share"] for row in rows]
  assert all(share < 0.9 for share in shares) if name == "uniform" else shares == pytest.approx([1, 1], abs=1e-4)
  assert not any(row["skipped"] for row in rows) and "sampling/utilisation" not in rows[0]


def test_responses_end_at_stop_tokens_and_forbidden_ones_are_left_out(tmp_path):
  policy, config = toy.policy(), toy.config(tmp_path)
  policy = policy._replace(config=dataclasses.replace(policy.config, forbidden=(5,)))
  rows, settings = [{"prompt": toy.PROMPTS[0]}], build_sampling.sampling(config, policy)
  given = lambda *_, **__: ([[[1, 2, 0, 3], [1, 5], [4, 4, 4, 4, 4]]], [[[-1.0] * 4, [-1.0] * 2, [-2.0] * 5]])
  found = outside.OutsideSampler(policy, settings, rows, given)(policy.params, rows, jax.random.key(0), 3)
  assert [list(ids) for ids in found.responses[0]] == [[1, 2, 0], [], [4, 4, 4, 4]]
  assert found.rollout.truncated.tolist() == [[False, True, True]]
  assert found.rollout.log_probs.sum(-1).tolist() == [[-3.0, 0.0, -8.0]]
  call = lambda function: outside.OutsideSampler(policy, settings, rows, function)(
    policy.params, rows, jax.random.key(0), 3
  )
  for wrong in (
    [[[1]]],
    ([[[1], [2], [3]]], [[[0.0], [], [0.0]]]),
    [[[1], [2], [policy.config.vocab_size]]],
    [[[-1], [2], [3]]],
    [[[], [], []]],
    [["a", "b", "c"]],
    None,
  ):
    with pytest.raises(InputError, match=r"^sampling\.function returned .*$"):
      call(lambda *_, w=wrong, **__: w)
  with pytest.raises(InputError, match=r"^sampling\.function raised TypeError: .*$"):
    call(lambda weights, prompts: None)


def test_the_client_speaks_to_a_server_in_ids(tmp_path):
  """A server in vLLM's dialect; what it is asked, and what becomes of its answers and errors."""
  asked = []

  class Handler(http.BaseHTTPRequestHandler):
    def do_POST(self):
      asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
      logprobs = {"tokens": ["token_id:3", "token_id:0"], "token_logprobs": [-1.5, -0.5]}
      body = json.dumps({"choices": [{"text": "3", "logprobs": logprobs, "finish_reason": "stop"}]}).encode()
      self.send_response(200 if len(asked) < 5 else 503)
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *_):
      """Says nothing."""

  server = http.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  saved = []

  class Weights:
    policy = toy.policy()

    def save(self, folder, dtype):
      saved.append((folder.name[-2:], dtype))
      return folder

  try:
    client = Server(f"http://127.0.0.1:{server.server_port}", tmp_path / "served", ids=True, every=2)
    options = {"group_size": 2, "max_length": 4, "temperature": 0.5}
    ask = lambda: client(Weights(), [[1, 2]], np.random.default_rng(0), **options)
    assert ask() == ([[[3, 0]] * 2], [[[-1.5, -0.5]] * 2]) == ask()
    assert saved == [("-0", "float32")] and asked[0]["prompt"] == [1, 2] and asked[0]["temperature"] == 0.5
    assert asked[0]["model"].startswith(str(tmp_path / "served")) and asked[0]["seed"] != asked[1]["seed"]
    with pytest.raises(InputError, match="gave no completion"):
      ask()
    assert saved[1:] == [("-1", "float32")]
  finally:
    server.shutdown()
  with pytest.raises(InputError, match="set ids=True"):
    Server("http://x", every=2)
