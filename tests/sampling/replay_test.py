"""The replay buffer: what is good enough is kept by any JSON-able key, and comes back from a checkpoint."""

import json

import numpy as np
import pytest

from qempo_jax.data.examples import Message
from qempo_jax.sampling.replay import ReplayBuffer

KEYS = ["a prompt", 24, (Message(role="system", content="s"), Message(role="user", content="u")), None]


@pytest.mark.parametrize("key", KEYS)
def test_finds_come_back_from_a_checkpoint_under_their_key(key):
  buffer = ReplayBuffer(0.5)
  buffer.add(key, [3, 4], 1.0)
  buffer.add(key, [5], 0.4)
  buffer.add("another", [6], 0.9)
  restored = ReplayBuffer(0.5)
  restored.from_json(json.loads(json.dumps(buffer.to_json())))
  assert restored.draw(key, 4, np.random.default_rng(0)) == [((3, 4), 1.0)]
  assert restored.total == 2 and restored.to_json() == buffer.to_json()


def test_a_draw_holds_no_response_twice():
  buffer = ReplayBuffer(0.5)
  for token in range(6):
    buffer.add("p", [token, 9], 1.0)
  draws = [buffer.draw("p", 4, np.random.default_rng(seed)) for seed in range(20)]
  assert all(len(set(draw)) == 4 for draw in draws) and len(set(sum(draws, []))) == 6
