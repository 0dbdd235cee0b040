"""What is learned from answers: service times, links, how many jobs a peer bears, and how far its word is trusted.

Each estimator is a small object of one peer (or of this node) and is told of samples with the time they came; none
knows of jobs, queues or other peers. Averages are exponentially weighted; a prior counts as a number of samples, so
that one odd first answer does not rule.
"""

import math

from scheduler.config import EstimateConfig, WindowConfig


class ServiceEstimate:
    """Service time of one model on one node, alone on the machine: what the node's table says, corrected by answers.

    Parameters
    ----------
    prior_s : float
        Mean service time as advertised, in seconds.

    Notes
    -----
    Samples are divided by the node's slow-down factor of their time, and `now_s` has to be multiplied with the
    present one, so that heat or other load on the node does not look like a slower model.
    """

    __slots__ = ("_average_s", "_batches", "_count", "batch_share", "prior_s", "value_s")

    def __init__(self, prior_s: float) -> None:
        self.prior_s = prior_s
        self.value_s = prior_s
        """Best estimate in seconds, at slow-down 1."""
        self._average_s = 0.0
        self._count = self._batches = 0
        self.batch_share = 1.0
        """Time of a further job in a batch, as a share of one alone; 1 until batches were seen."""

    def batch_s(self, jobs: int) -> float:
        """Predict the time of a batch in seconds, at slow-down 1."""
        return self.value_s * (1.0 + (jobs - 1) * self.batch_share)

    def learn_batch(self, jobs: int, service_s: float, config: EstimateConfig) -> None:
        """Take in the time of a batch of at least two jobs, in seconds, at slow-down 1."""
        if self.value_s > 0.0:
            share = min(max((service_s / self.value_s - 1.0) / (jobs - 1), 0.0), 2.0)
            self._batches += 1
            self.batch_share += max(config.alpha, 1.0 / self._batches) * (share - self.batch_share)

    def batches_pay(self, below: float) -> bool:
        """Return whether a batch is worth it: it was seen to take less than this share, or was never seen yet."""
        return not self._batches or self.batch_share < below

    def learn(self, service_s: float, config: EstimateConfig) -> None:
        """Take in one service time in seconds, at slow-down 1."""
        count = self._count = self._count + 1
        # The first samples are averaged evenly: with alpha alone the very first would weigh (1 - alpha)^n for long.
        weight = max(config.alpha, 1.0 / count)
        self._average_s += weight * (service_s - self._average_s)
        prior = config.prior_weight
        self.value_s = (count * self._average_s + prior * self.prior_s) / (count + prior)

    def advertise(self, prior_s: float) -> None:
        """Take in a new advertised mean: what was learned of the old one counts as before."""
        if prior_s != self.prior_s:
            self.prior_s = prior_s
            self._count = self._batches = 0
            self.value_s = prior_s
            self.batch_share = 1.0


class LinkEstimate:
    """Round trip and goodput of the way to one peer."""

    __slots__ = ("_config", "goodput_bytes_s", "is_measured", "rtt_s")

    def __init__(self, config: EstimateConfig) -> None:
        self._config = config
        self.rtt_s = config.rtt_prior_s
        self.goodput_bytes_s = config.goodput_prior_bytes_s
        self.is_measured = False
        """Whether a transfer large enough to tell the goodput was seen."""

    def learn_rtt(self, rtt_s: float) -> None:
        """Take in one round trip of a small frame, in seconds."""
        if rtt_s >= 0 and math.isfinite(rtt_s):
            self.rtt_s += self._config.alpha * (rtt_s - self.rtt_s)

    def learn_transfer(self, sent_bytes: int, sent_s: float) -> None:
        """Take in one transfer; those too small or too short to tell anything are left out."""
        if sent_s <= 0 or sent_bytes < self._config.goodput_sample_bytes:
            return
        # The time per byte is averaged, not the rate: it is time that adds up in a prediction.
        weight = self._config.alpha if self.is_measured else 1.0
        per_byte_s = 1.0 / self.goodput_bytes_s
        per_byte_s += weight * (sent_s / sent_bytes - per_byte_s)
        self.goodput_bytes_s = 1.0 / per_byte_s
        self.is_measured = True


class Uplink:
    """Bytes this node has queued on its own way out, as the time until they are gone.

    One queue for all peers: most boards have one radio or one cable, and it is the narrow part.
    """

    __slots__ = ("free_at_s",)

    def __init__(self) -> None:
        self.free_at_s = 0.0

    def delay_s(self, now_s: float) -> float:
        """Predict how long a new payload waits for those before it, in seconds."""
        return self.free_at_s - now_s if self.free_at_s > now_s else 0.0

    def push(self, size_bytes: int, goodput_bytes_s: float, now_s: float) -> None:
        """Queue a payload."""
        start_s = self.free_at_s if self.free_at_s > now_s else now_s
        self.free_at_s = start_s + size_bytes / goodput_bytes_s


class Window:
    """Jobs that may be open at one peer: additive increase, multiplicative decrease (Chiu and Jain 1989).

    It bounds what a peer can lose of ours, and how many of ours pile up at a peer that is slower than it says.
    """

    __slots__ = ("_config", "size")

    def __init__(self, config: WindowConfig) -> None:
        self._config = config
        self.size = config.initial if config.enabled else math.inf

    def learn(self, *, waiting_s: float, actual_s: float, promised_s: float) -> None:
        """Take in one answer: its wait at the peer, and its whole time against the estimate, in seconds."""
        config = self._config
        if waiting_s < config.waiting_s:
            if self.size < config.limit:
                self.size += 1.0
        elif actual_s > config.late_factor * promised_s + config.waiting_s:
            self.close()

    def close(self) -> None:
        """Halve it: a job was late beyond measure, or had no answer at all."""
        self.size = max(1.0, self.size * self._config.decrease)

    def reset(self) -> None:
        """Start again with one job: the peer was silent."""
        if self._config.enabled:
            self.size = 1.0


class Trust:
    """Factor on a peer's estimates, learned from what it promised and what came of it.

    A node that advertises an empty queue and answers late draws jobs from everybody, since each of its answers, and
    each of its state records, says that it is idle. Only the time seen from here cannot be forged.

    Notes
    -----
    The factor rises at once, half the way to the ratio seen, and falls by three tenths of the way per answer in time
    or by half in `trust_half_life_s` without any, so that a peer that was only unlucky is asked again.
    """

    __slots__ = ("_at_s", "_config", "_factor", "is_full")

    def __init__(self, config: EstimateConfig) -> None:
        self._config = config
        self.is_full = True
        """Whether the factor is 1."""
        self._factor = 1.0
        self._at_s = 0.0

    def factor(self, now_s: float) -> float:
        """Return the factor to multiply the peer's estimates with, >= 1."""
        if self.is_full:
            return 1.0
        age_s = now_s - self._at_s
        return 1.0 + (self._factor - 1.0) * math.pow(0.5, age_s / self._config.trust_half_life_s)

    def learn(self, *, promised_s: float, actual_s: float, now_s: float) -> None:
        """Compare one promise, as its maker's records made it look, with the outcome, both in seconds."""
        config = self._config
        late_s = actual_s - config.trust_allowance_s
        if late_s <= config.trust_tolerance * promised_s:
            if not self.is_full:
                self._set(1.0 + 0.7 * (self.factor(now_s) - 1.0), now_s)
            return
        if not config.trust:
            return
        ratio = min(config.trust_limit, late_s / promised_s if promised_s > 0 else config.trust_limit)
        factor = self.factor(now_s)
        self._set(factor + (0.5 if ratio > factor else 0.3) * (ratio - factor), now_s)

    def _set(self, factor: float, now_s: float) -> None:
        self.is_full = factor <= 1.05
        self._factor = 1.0 if self.is_full else factor
        self._at_s = now_s


class TokenBucket:
    """Tokens that accrue over time or by deposit, up to a burst.

    Parameters
    ----------
    burst : float
        Most tokens kept; it starts full.
    """

    __slots__ = ("_at_s", "burst", "tokens")

    def __init__(self, burst: float, now_s: float) -> None:
        self.burst = burst
        self.tokens = burst
        self._at_s = now_s

    def deposit(self, tokens: float) -> None:
        """Add tokens."""
        self.tokens = min(self.burst, self.tokens + tokens)

    def accrue(self, rate_hz: float, now_s: float) -> None:
        """Add the tokens of the time since the last call."""
        self.tokens = min(self.burst, self.tokens + rate_hz * (now_s - self._at_s))
        self._at_s = now_s

    def take(self, tokens: float = 1.0) -> bool:
        """Take so many tokens if there are as many."""
        # Accrual rounds: a token that is there but for the last bit is there, or its owner would wake again at once.
        if self.tokens < tokens - 1e-9:
            return False
        self.tokens = max(0.0, self.tokens - tokens)
        return True
