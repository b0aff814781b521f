"""When a search ends before its simulations are over: its budget is spent, or its answer is settled.

Guarantees: with `settled: 1.0` the answer chosen by majority is the one that searching on without end would choose.
The argument: trajectories are distinct texts, so their probabilities under the policy sum to one at most; those not
seen yet cannot weigh more than what is left. For `weighted` the same holds as long as no trajectory to come has a
higher PPM score than the best one seen, which is assumed, not known. Nothing is ever settled by `answer: ppm`, nor
where the policy does not tell its probabilities. `max_seconds` is the one rule that looks at a clock, so trees under
it depend on the machine.
"""

from __future__ import annotations

import math
import time

from rstar_trl.search.state import State


def spent(state: State) -> bool:
    """No further steps may be asked for: the tokens or the seconds of the question are spent."""
    config = state.config
    if config.max_tokens is not None and state.tree.generated_tokens >= config.max_tokens:
        return True
    return config.max_seconds is not None and time.monotonic() - state.started >= config.max_seconds


def enough(state: State) -> bool:
    """No further simulation need be begun."""
    config = state.config
    if state.closed[0] or spent(state):
        return True
    if state.task.mode == "train":
        return state.solved >= (config.stop_when_solved or math.inf)
    return config.settled is not None and state.told and settled(state, 1.0 - state.seen, config.settled)


def settled(state: State, unseen: float, margin: float) -> bool:
    """Whether the leading result is ahead of the next by more than `margin` times the weight still unseen.

    `unseen`: the share of the trajectories (or of the samples) still to come.
    """
    if state.config.answer == "ppm" or not state.votes:
        return False
    first, second, *_ = [*sorted(state.votes.values(), reverse=True), 0.0]
    return first - second > margin * max(0.0, unseen) * state.heaviest
