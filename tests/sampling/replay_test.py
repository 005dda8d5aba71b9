"""The replay buffer: what is good enough is kept by any JSON-able key, up to a capacity, and comes back from a checkpoint."""

import json

import numpy as np
import pytest

from qempo_jax.data.examples import Message
from qempo_jax.sampling.replay import ReplayBuffer

KEYS = ["a prompt", 24, (Message(role="system", content="s"), Message(role="user", content="u")), None]


@pytest.mark.parametrize("key", KEYS)
def test_finds_come_back_from_a_checkpoint_under_their_key(key):
  buffer = ReplayBuffer(0.5, capacity=100)
  buffer.add(key, [3, 4], 1.0)
  buffer.add(key, [5], 0.4)
  buffer.add("another", [6], 0.9)
  restored = ReplayBuffer(0.5, capacity=100)
  restored.from_json(json.loads(json.dumps(buffer.to_json())))
  assert restored.draw(key, 4, np.random.default_rng(0)) == [((3, 4), 1.0)]
  assert restored.total == 2 and restored.to_json() == buffer.to_json()


def test_a_draw_holds_no_response_twice():
  buffer = ReplayBuffer(0.5, capacity=100)
  for token in range(6):
    buffer.add("p", [token, 9], 1.0)
  draws = [buffer.draw("p", 4, np.random.default_rng(seed)) for seed in range(20)]
  assert all(len(set(draw)) == 4 for draw in draws) and len(set(sum(draws, []))) == 6


def _responses(buffer, key):
  return {response for response, _ in buffer.draw(key, 100, np.random.default_rng(0))}


def test_the_oldest_responses_go_first_also_after_a_checkpoint():
  buffer = ReplayBuffer(0.5, capacity=4)
  for key, token in (("p", 1), ("q", 2), ("p", 3), ("q", 4), ("p", 1)):  # finding 1 again makes it no younger
    buffer.add(key, [token, 9], 1.0)
  restored = ReplayBuffer(0.5, capacity=4)
  restored.from_json(json.loads(json.dumps(buffer.to_json())))
  for one in (buffer, restored):
    one.add("q", [5, 9], 1.0)
    assert _responses(one, "p") == {(3, 9)} and _responses(one, "q") == {(2, 9), (4, 9), (5, 9)} and one.total == 4
  smaller = ReplayBuffer(0.5, capacity=2)
  smaller.from_json(buffer.to_json())
  assert _responses(smaller, "q") == {(4, 9), (5, 9)} and not _responses(smaller, "p")


def test_the_lists_of_an_older_checkpoint_are_read():
  buffer = ReplayBuffer(0.5, {7}, capacity=10)
  buffer.from_json([["p", [1, 9], 0.75], ["p", [7, 9], 1.0]])
  assert buffer.draw("p", 4, np.random.default_rng(0)) == [((1, 9), 0.75)]
