import pytest

from scheduler.config import EstimateConfig, WindowConfig
from scheduler.estimate import LinkEstimate, ServiceEstimate, TokenBucket, Trust, Uplink, Window


def test_the_table_is_the_prior_of_a_service_time():
    estimate = ServiceEstimate(0.1)
    assert estimate.value_s == 0.1
    estimate.learn(0.2, EstimateConfig())
    assert estimate.value_s == pytest.approx((1 * 0.2 + 4 * 0.1) / 5)


def test_a_service_time_follows_what_is_seen():
    estimate = ServiceEstimate(0.1)
    for _ in range(200):
        estimate.learn(0.2, EstimateConfig())
    assert estimate.value_s == pytest.approx(0.2, rel=0.02)


def test_batches_are_predicted_by_what_their_further_jobs_took():
    estimate = ServiceEstimate(0.1)
    assert estimate.batch_s(4) == pytest.approx(0.4), "the sum until batches were seen"
    for _ in range(100):
        estimate.learn_batch(3, 0.15, EstimateConfig())
    assert estimate.batch_s(3) == pytest.approx(0.15, rel=0.01)
    estimate.advertise(0.2)
    assert estimate.batch_share == 1.0


def test_a_new_table_starts_over():
    estimate = ServiceEstimate(0.1)
    for _ in range(50):
        estimate.learn(0.2, EstimateConfig())
    estimate.advertise(0.1)
    assert estimate.value_s > 0.15
    estimate.advertise(0.05)
    assert estimate.value_s == 0.05


def test_small_transfers_say_nothing_of_the_goodput():
    link = LinkEstimate(EstimateConfig())
    link.learn_transfer(1000, 1e-6)
    link.learn_transfer(100_000, 0.0)
    assert not link.is_measured
    link.learn_transfer(100_000, 0.1)
    assert link.is_measured
    assert link.goodput_bytes_s == pytest.approx(1e6)


def test_the_goodput_averages_time_per_byte():
    link = LinkEstimate(EstimateConfig(alpha=0.5))
    link.learn_transfer(100_000, 0.1)
    link.learn_transfer(100_000, 0.3)
    assert 1 / link.goodput_bytes_s == pytest.approx(2e-6)


def test_the_round_trip_is_averaged():
    link = LinkEstimate(EstimateConfig())
    link.learn_rtt(0.105)
    assert link.rtt_s == pytest.approx(0.005 + 0.2 * 0.1)
    link.learn_rtt(float("nan"))
    link.learn_rtt(-1.0)
    assert link.rtt_s == pytest.approx(0.025)


def test_payloads_queue_on_the_own_uplink():
    uplink = Uplink()
    uplink.push(1_000_000, 1e6, now_s=5.0)
    uplink.push(500_000, 1e6, now_s=5.5)
    assert uplink.delay_s(5.5) == pytest.approx(1.0)
    assert uplink.delay_s(9.0) == 0.0


def test_the_window_opens_by_one_and_closes_by_half():
    window = Window(WindowConfig(initial=4.0))
    window.learn(waiting_s=0.01, actual_s=1.0, promised_s=0.1)
    assert window.size == 5.0
    window.learn(waiting_s=0.2, actual_s=0.25, promised_s=0.1)
    assert window.size == 5.0
    window.learn(waiting_s=0.2, actual_s=0.26, promised_s=0.1)
    assert window.size == 2.5
    for _ in range(5):
        window.close()
    assert window.size == 1.0


def test_the_window_has_a_limit():
    window = Window(WindowConfig(initial=4.0, limit=6.0))
    for _ in range(9):
        window.learn(waiting_s=0.0, actual_s=0.1, promised_s=0.1)
    assert window.size == 6.0


def test_trust_ignores_lateness_within_tolerance():
    trust = Trust(EstimateConfig())
    trust.learn(promised_s=0.02, actual_s=0.09, now_s=0.0)
    assert trust.factor(0.0) == 1.0
    assert trust.is_full


def test_one_very_late_answer_costs_most_of_the_trust():
    trust = Trust(EstimateConfig())
    trust.learn(promised_s=0.02, actual_s=1.05, now_s=0.0)
    assert trust.factor(0.0) == pytest.approx(1 + 0.5 * (50 - 1))


def test_lost_trust_comes_back_with_answers_in_time_and_with_time():
    trust = Trust(EstimateConfig(trust_half_life_s=10.0))
    trust.learn(promised_s=0.02, actual_s=1.05, now_s=0.0)
    assert trust.factor(10.0) == pytest.approx(1 + 24.5 / 2)
    trust.learn(promised_s=0.02, actual_s=0.02, now_s=10.0)
    assert trust.factor(10.0) == pytest.approx(1 + 0.7 * 24.5 / 2)
    for _ in range(20):
        trust.learn(promised_s=0.02, actual_s=0.02, now_s=10.0)
    assert trust.is_full


def test_trust_has_a_limit_and_can_be_switched_off():
    trust = Trust(EstimateConfig(trust_limit=10.0))
    for _ in range(50):
        trust.learn(promised_s=0.0, actual_s=100.0, now_s=0.0)
    assert trust.factor(0.0) == pytest.approx(10.0)
    trusting = Trust(EstimateConfig(trust=False))
    trusting.learn(promised_s=0.01, actual_s=100.0, now_s=0.0)
    assert trusting.is_full


def test_tokens_accrue_up_to_the_burst():
    bucket = TokenBucket(2.0, now_s=0.0)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    bucket.accrue(0.5, now_s=1.0)
    assert not bucket.take()
    bucket.accrue(0.5, now_s=2.0)
    assert bucket.take()
    bucket.accrue(0.5, now_s=100.0)
    assert bucket.tokens == 2.0


def test_a_token_that_lacks_only_rounding_is_there():
    bucket = TokenBucket(1.0, now_s=0.0)
    bucket.take()
    for number in range(1, 11):
        bucket.accrue(0.1, now_s=float(number))
    assert bucket.take()


def test_a_window_that_is_off_never_closes():
    window = Window(WindowConfig(enabled=False))
    window.close()
    window.reset()
    window.learn(waiting_s=9.0, actual_s=9.0, promised_s=0.1)
    window.learn(waiting_s=0.0, actual_s=9.0, promised_s=0.1)
    assert window.size == float("inf")
