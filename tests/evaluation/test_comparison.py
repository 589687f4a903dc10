import numpy as np
import pytest
from scipy import stats

from dopr_robot.evaluation import comparison


def test_mcnemar_against_statsmodels():
    contingency_tables = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is not installed"
    )
    rng = np.random.default_rng(0)
    for n in (1, 7, 40, 200):
        first, second = rng.random(n) < 0.7, rng.random(n) < 0.5
        table = [[(first & second).sum(), (first & ~second).sum()], [(second & ~first).sum(), (~first & ~second).sum()]]
        expected = contingency_tables.mcnemar(table, exact=True)
        found = comparison.mcnemar(first, second)
        assert found["p_value"] == pytest.approx(expected.pvalue, abs=1e-12)
        assert min(found["only_first"], found["only_second"]) == expected.statistic


def test_mcnemar_without_a_discordant_pair():
    same = np.array([True, False, True])
    assert comparison.mcnemar(same, same) == {"only_first": 0, "only_second": 0, "p_value": 1.0}


def test_holm_against_statsmodels():
    from statsmodels.stats import multitest

    rng = np.random.default_rng(1)
    for n in (1, 2, 9, 30):
        p_values = np.minimum(1, rng.random(n) ** 3)
        assert comparison.holm(p_values) == pytest.approx(list(multitest.multipletests(p_values, method="holm")[1]))


def test_holm_by_hand():
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_bootstrap_interval_against_scipy():
    rng = np.random.default_rng(2)
    first, second = rng.random((1, 120, 1)) < 0.8, rng.random((1, 120, 1)) < 0.6
    found = comparison.difference_curve(first, second, resamples=20_000)
    pairs = (first.astype(float) - second)[0, :, 0]
    expected = stats.bootstrap((pairs,), np.mean, n_resamples=20_000, method="percentile", rng=3).confidence_interval
    assert found.difference[0] == pytest.approx(pairs.mean())
    assert [found.low[0], found.high[0]] == pytest.approx(list(expected), abs=0.01)


def simulate(rng, seeds, episodes, horizons, spread):
    """Success of two equally good methods: shared difficulty of the initial state, own luck of each training seed."""
    difficulty = rng.normal(size=(1, episodes, 1))
    luck = spread * rng.normal(size=(2, seeds, 1, 1))
    steps = 40 * np.exp(0.5 * difficulty + luck + 0.5 * rng.normal(size=(2, seeds, episodes, 1)))
    return tuple(steps <= horizons)


def test_under_no_difference_false_alarms_are_rare():
    """2,000 synthetic comparisons of two equally good policies at eight horizons each."""
    rng = np.random.default_rng(4)
    horizons = np.arange(10, 90, 10)
    trials, alarms = 2000, {"mcnemar": 0, "holm": 0, "sequential": 0}
    for _ in range(trials):
        first, second = simulate(rng, 1, 100, horizons, spread=0.0)
        p_values = [comparison.mcnemar(first[0, :, h], second[0, :, h])["p_value"] for h in range(len(horizons))]
        alarms["mcnemar"] += p_values[3] <= 0.05
        alarms["holm"] += min(comparison.holm(p_values)) <= 0.05
        alarms["sequential"] += comparison.sequential_decision(first[0, :, 3], second[0, :, 3]) is not None
    shares = {name: count / trials for name, count in alarms.items()}
    assert all(share <= 0.05 for share in shares.values()), shares
    assert shares["mcnemar"] > 0.01  # the exact test is careful, not blind


def test_the_band_of_the_difference_holds_the_truth():
    rng = np.random.default_rng(5)
    horizons = np.arange(10, 90, 10)
    missed = 0
    for trial in range(300):
        found = comparison.difference_curve(*simulate(rng, 1, 100, horizons, spread=0.0), resamples=400, seed=trial)
        missed += bool(((found.band_low > 0) | (found.band_high < 0)).any())
    assert missed / 300 <= 0.08  # nominal 0.05; standard error 0.013


def test_several_training_seeds_widen_the_interval():
    rng = np.random.default_rng(6)
    first, second = simulate(rng, 5, 200, np.array([40]), spread=0.5)
    over_seeds = comparison.difference_curve(first, second)
    episodes_alone = comparison.difference_curve(first.reshape(1, -1, 1), second.reshape(1, -1, 1))
    assert over_seeds.difference == pytest.approx(episodes_alone.difference)
    assert (over_seeds.high - over_seeds.low)[0] > 1.5 * (episodes_alone.high - episodes_alone.low)[0]


def test_the_unit_of_a_test_over_seeds_is_the_training_run():
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(200):
        first, second = simulate(rng, 5, 100, np.array([40]), spread=0.5)
        alarms += comparison.seeds_test(first.mean(axis=(1, 2)), second.mean(axis=(1, 2))) <= 0.05
    assert alarms / 200 <= 0.05
    assert comparison.seeds_test(np.array([0.9, 0.8, 0.85]), np.array([0.1, 0.2, 0.15, 0.3])) == pytest.approx(2 / 35)


def test_power_against_simulation():
    rng = np.random.default_rng(8)
    only_first, only_second, n = 0.2, 0.08, 150
    draws = rng.choice(3, p=[only_first, only_second, 1 - only_first - only_second], size=(4000, n))
    wins, losses = (draws == 0).sum(axis=1), (draws == 1).sum(axis=1)
    seen = np.mean([stats.binomtest(int(w), int(w + t)).pvalue <= 0.05 for w, t in zip(wins, losses, strict=True)])
    assert comparison.power(0.12, 0.28, n) == pytest.approx(seen, abs=0.025)
    assert comparison.power(0.0, 0.3, n) <= 0.05


def test_episodes_needed():
    needed = comparison.episodes_needed(0.1, 0.3)
    assert comparison.power(0.1, 0.3, needed) >= 0.8
    assert 200 < needed < 280  # Connor (Biometrics 43, 1987) gives about 234
    assert comparison.episodes_needed(0.2, 0.3) < needed / 3
    assert comparison.episodes_needed(0.001, 0.5) is None


def test_evidence_is_the_mixture_integral():
    from scipy.integrate import quad

    def ratio(p):
        return stats.binom.pmf(9, 12, p) / stats.binom.pmf(9, 12, 0.5) * stats.beta.pdf(p, 0.5, 0.5)

    assert comparison.evidence(9, 3) == pytest.approx(quad(ratio, 0, 1)[0], rel=1e-4)
    assert comparison.evidence(0, 0) == pytest.approx(1.0)


def test_sequential_decides_early_where_the_difference_is_large():
    rng = np.random.default_rng(9)
    first, second = rng.random(500) < 0.9, rng.random(500) < 0.5
    decided = comparison.sequential_decision(first, second)
    assert decided is not None and decided < 100
