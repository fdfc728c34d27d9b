"""The privacy ledger: charges that are chained and signed, and what they add up to over all runs."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation import accounting
from federation.forecast import noise_words
from federation.pieces import pieces_of
from federation.plan import Encoding, LocalTraining, TrainingPlan, sign_plan
from federation.privacy import Privacy, evaluations, train_price, validation_price
from federation.vocabulary import Metric

from site_client.agent.chained_file import GENESIS
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.privacy.costs import CostKind, PrivacyCost, costs_of_round, epsilon_of
from site_client.agent.privacy.ledger import CHAIN, PrivacyLedger, SpentPrivacy, read
from site_client.agent.rounds.plan_description import describe
from site_client.agent.rounds.plans import Plans
from site_client.agent.rounds.policy import policy_conflicts
from site_client.check_result import Color
from site_client.cli import main
from site_client.config import FoldersSettings, PolicySettings, SiteSettings
from site_client.doctor.network.enrolment import check_privacy
from site_client.errors import LedgerBroken
from tests.site_client.agent.conftest import Consortium, StandingClock

DELTA = 1e-6
PRIVACY = Privacy(
    sampling_rate=0.1,
    noise_multiplier=2.0,
    patients_expected=500,
    batch_max=100,
    epsilon_train=8.0,
    validation_interval=2,
    validation_multiplier=20.0,
    epsilon_validation=2.0,
)


@pytest.fixture
def private(plan: TrainingPlan) -> TrainingPlan:
    """Five rounds of training; histograms leave in rounds 1, 3, 5 and 6."""
    return replace(
        plan,
        training=LocalTraining(),
        encoding=Encoding(rotation_seed=bytes(32)),
        metrics=(Metric.HISTOGRAMS,),
        privacy=PRIVACY,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "agent"


@pytest.fixture
def privacy_ledger(folder: Path, signer: Ed25519PrivateKey, clock: StandingClock) -> PrivacyLedger:
    return PrivacyLedger(folder, signer, clock, 0.2)


def test_a_charge_says_what_was_spent_and_by_which_run(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path, signer: Ed25519PrivateKey
) -> None:
    privacy_ledger.charge(private, 2)
    record = json.loads((folder / "privacy.jsonl").read_text())
    assert record.pop("sig")
    cost = record.pop("cost")
    assert record == {
        "seq": 1,
        "utc": "2026-11-23T09:00:00.000000+00:00",
        "run": private.run_id.hex(),
        "round": 2,
        "plan": private.digest.hex(),
        "validation_fraction": 0.2,
        "key": signer.public_key().public_bytes_raw().hex(),
        "prev_hash": GENESIS,
    }
    assert PrivacyCost(**(cost | {"kind": CostKind(cost["kind"])})) == costs_of_round(private, 2)[0]


def test_a_round_is_charged_once_whatever_comes_between(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path, signer: Ed25519PrivateKey, clock: StandingClock
) -> None:
    for number in (1, 1, 2, 1, 6):
        privacy_ledger.charge(private, number)
        privacy_ledger = PrivacyLedger(folder, signer, clock, 0.2)
    assert [(charge.round, charge.cost.kind) for charge in read(folder / "privacy.jsonl")] == [
        (1, "train"),
        (1, "validation"),
        (2, "train"),
        (6, "validation"),
    ]


def test_the_price_of_a_charge_is_the_plan_s(private: TrainingPlan) -> None:
    train, validation = costs_of_round(private, 1)
    assert train.price == train_price(PRIVACY, sum(pieces_of(private.moving.size)))
    assert validation.price == validation_price(PRIVACY)


def test_a_whole_run_spends_what_its_prices_add_up_to(privacy_ledger: PrivacyLedger, private: TrainingPlan) -> None:
    for number in range(1, 7):
        privacy_ledger.charge(private, number)
    spending = privacy_ledger.spending()
    training = accounting.times(train_price(PRIVACY, sum(pieces_of(private.moving.size))), private.rounds)
    checks = accounting.times(validation_price(PRIVACY), evaluations(PRIVACY, private.rounds))
    for kind, price in ((CostKind.TRAIN, training), (CostKind.VALIDATION, checks)):
        assert spending.epsilon(DELTA, [kind]) == pytest.approx(accounting.adaptive_epsilon(price, DELTA), rel=1e-4)
        assert spending.epsilon(DELTA, [kind]) >= accounting.adaptive_epsilon(price, DELTA)
    larger = max(spending.epsilon(DELTA, [kind]) for kind in (CostKind.TRAIN, CostKind.VALIDATION))
    assert spending.epsilon(DELTA) == larger
    # Nothing of the run is ahead any more.
    assert spending.epsilon_with(private, DELTA, 6) == spending.epsilon(DELTA)
    assert SpentPrivacy((), 0.2).epsilon_with(private, DELTA) == pytest.approx(larger)


def test_after_the_split_has_changed_both_kinds_add_up(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path, signer: Ed25519PrivateKey, clock: StandingClock
) -> None:
    privacy_ledger.charge(private, 1)
    apart = privacy_ledger.spending().epsilon(DELTA)
    PrivacyLedger(folder, signer, clock, 0.3).charge(replace(private, run_id=bytes(16)), 1)
    spending = PrivacyLedger(folder, signer, clock, 0.3).spending()
    assert spending.has_moved
    price = accounting.add(charge.cost.price for charge in spending.charges)
    assert spending.epsilon(DELTA) == pytest.approx(accounting.adaptive_epsilon(price, DELTA), rel=1e-4)
    assert spending.epsilon(DELTA) > apart


def test_a_fraction_that_is_changed_now_counts_before_its_first_charge(
    privacy_ledger: PrivacyLedger, private: TrainingPlan
) -> None:
    privacy_ledger.charge(private, 1)
    charges = privacy_ledger.spending().charges
    other = replace(private, run_id=bytes(16))
    assert SpentPrivacy(charges, 0.3).epsilon_with(other, DELTA) > SpentPrivacy(charges, 0.2).epsilon_with(other, DELTA)


def test_too_many_rounds_for_a_delta_have_no_bound(private: TrainingPlan) -> None:
    train = costs_of_round(private, 2)[0]
    assert epsilon_of([(train, 0.2)] * 3, 3 * train.rounding) == math.inf
    assert epsilon_of([(replace(train, tails=0.5), 0.2)], DELTA) == math.inf


def test_a_run_without_noise_has_no_bound(privacy_ledger: PrivacyLedger, plan: TrainingPlan) -> None:
    for number in (1, 2):
        privacy_ledger.charge(plan, number)
    spending = privacy_ledger.spending()
    assert [charge.cost.kind for charge in spending.charges] == [CostKind.UNBOUNDED]
    assert spending.epsilon(DELTA) == math.inf


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_a_line_that_was_changed_is_found_and_nothing_is_charged_after_it(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path, changed: int
) -> None:
    for number in (1, 2):
        privacy_ledger.charge(private, number)
    path = folder / "privacy.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[changed - 1] = lines[changed - 1].replace(b'"variance":', b'"variance":1')
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerBroken, match=f"privacy ledger does not verify at entry {changed}") as refusal:
        privacy_ledger.charge(private, 3)
    assert refusal.value.seq == changed
    assert path.read_bytes() == b"".join(lines)


def test_a_line_with_a_value_out_of_range_is_refused_though_signed(folder: Path, signer: Ed25519PrivateKey) -> None:
    folder.mkdir(parents=True)
    record = {"seq": 1, "prev_hash": GENESIS, "key": signer.public_key().public_bytes_raw().hex(), "round": -1}
    line = json.dumps(CHAIN.signed(record, signer), sort_keys=True, separators=(",", ":")).encode()
    (folder / "privacy.jsonl").write_bytes(line + b"\n")
    with pytest.raises(LedgerBroken):
        list(read(folder / "privacy.jsonl"))


def test_an_unfinished_line_is_cut_and_the_charge_made_again(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path
) -> None:
    path = folder / "privacy.jsonl"
    privacy_ledger.charge(private, 2)
    whole = path.read_bytes()
    privacy_ledger.charge(private, 4)
    both = path.read_bytes()
    path.write_bytes(both[:-20])
    privacy_ledger.charge(private, 4)
    assert path.read_bytes() == both  # the same clock, so the same line
    assert both.startswith(whole)


def test_a_host_that_joins_anew_goes_on_with_its_ledger(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path, clock: StandingClock
) -> None:
    privacy_ledger.charge(private, 2)
    anew = Ed25519PrivateKey.generate()
    PrivacyLedger(folder, anew, clock, 0.2).charge(private, 4)
    keys = [charge.key for charge in read(folder / "privacy.jsonl")]
    assert keys[1] == anew.public_key().public_bytes_raw()
    assert keys[0] != keys[1]


# The policy.


def test_a_plan_that_does_not_fit_is_declined_with_its_numbers(
    privacy_ledger: PrivacyLedger, private: TrainingPlan
) -> None:
    needed = SpentPrivacy((), 0.2).epsilon_with(private, DELTA)
    policy = PolicySettings(epsilon_max=round(needed + 0.01, 2))
    assert list(policy_conflicts(policy, private, privacy_ledger.spending())) == []
    privacy_ledger.charge(replace(private, run_id=bytes(16)), 1)
    (sentence,) = policy_conflicts(policy, private, privacy_ledger.spending())
    assert f"policy.epsilon_max is {policy.epsilon_max:g}" in sentence
    assert f"{privacy_ledger.spending().epsilon(DELTA):.2f} are spent" in sentence


def test_rounds_that_a_site_missed_are_not_ahead_of_it(private: TrainingPlan) -> None:
    nothing = SpentPrivacy((), 0.2)
    whole, rest = (nothing.epsilon_with(private, DELTA, begin) for begin in (1, 4))
    assert rest < whole
    policy = PolicySettings(epsilon_max=(rest + whole) / 2)
    assert list(policy_conflicts(policy, private, nothing, 1)) != []
    assert list(policy_conflicts(policy, private, nothing, 4)) == []


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (PolicySettings(privacy_required=True), "policy.privacy_required is set, the sum of the plan has no noise"),
        (PolicySettings(epsilon_max=8.0), "the plan promises no differential privacy at all"),
    ],
)
def test_a_plan_without_noise_is_declined_where_the_policy_asks_for_it(
    plan: TrainingPlan, private: TrainingPlan, policy: PolicySettings, words: str
) -> None:
    (sentence,) = policy_conflicts(policy, plan, SpentPrivacy((), 0.2))
    assert words in sentence
    assert list(policy_conflicts(policy, private, SpentPrivacy((), 0.2))) == []


def test_after_a_run_without_a_bound_no_budget_fits(
    privacy_ledger: PrivacyLedger, plan: TrainingPlan, private: TrainingPlan
) -> None:
    privacy_ledger.charge(plan, 1)
    (sentence,) = policy_conflicts(PolicySettings(epsilon_max=8.0), private, privacy_ledger.spending())
    assert "taken part in a run without a bound" in sentence
    assert list(policy_conflicts(PolicySettings(), private, privacy_ledger.spending())) == []


def test_evaluations_that_are_repeated_end_with_the_plan_s_budget(
    privacy_ledger: PrivacyLedger, private: TrainingPlan
) -> None:
    for number in range(1, 200):
        if list(policy_conflicts(PolicySettings(), private, privacy_ledger.spending(), number)):
            break
        privacy_ledger.charge(private, number)
    (sentence,) = policy_conflicts(PolicySettings(), private, privacy_ledger.spending(), number)
    assert "have used up the epsilon of 2" in sentence
    spent = accounting.add(
        charge.cost.price for charge in privacy_ledger.spending().charges if charge.cost.kind is CostKind.VALIDATION
    )
    assert accounting.epsilon(spent, PRIVACY.delta) <= 2.0
    assert number > private.evaluation_round


# Commands.

Type = Callable[..., Result]


@pytest.fixture
def typed(tmp_path: Path, identity: SiteIdentity) -> Type:
    config = tmp_path / "site.toml"
    config.write_text('name = "mercy"\n[folders]\nstate = "state"\nspool = "spool"\n[policy]\nepsilon_max = 9.0\n')
    return lambda *words: CliRunner().invoke(main, [*words, "--config", str(config)])


def test_privacy_show_says_what_was_spent_and_what_is_left(
    typed: Type, privacy_ledger: PrivacyLedger, plan: TrainingPlan, private: TrainingPlan
) -> None:
    assert "Nothing was charged yet" in typed("privacy", "show").output
    privacy_ledger.charge(private, 1)
    spent = privacy_ledger.spending().epsilon(DELTA)
    text = typed("privacy", "show").output
    assert f"epsilon {spent:.2f}" in text
    assert f"policy.epsilon_max is 9: {9 - spent:.2f} are left" in text
    assert f"run {private.run_id.hex()[:16]}" in text
    assert "in 1 rounds" in text
    facts = json.loads(typed("privacy", "show", "--json").output)
    assert facts["epsilon"] == spent
    assert facts["runs"][0]["training_rounds"] == 1
    privacy_ledger.charge(replace(plan, run_id=bytes(16)), 1)
    text = typed("privacy", "show").output
    assert "runs without a bound" in text
    assert f"{bytes(16).hex()[:16]}  without a bound" in text
    assert json.loads(typed("privacy", "show", "--json").output)["epsilon"] is None


def test_privacy_verify_names_the_first_changed_line(
    typed: Type, privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        privacy_ledger.charge(private, number)
    assert "unbroken" in typed("privacy", "verify").output
    assert json.loads(typed("privacy", "verify", "--json").output)["entries"] == 3
    path = folder / "privacy.jsonl"
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":1'))
    broken = typed("privacy", "verify")
    assert (broken.exit_code, "at entry 3" in broken.output) == (1, True)
    assert typed("privacy", "verify", "--file", str(copy)).exit_code == 0


def test_doctor_names_the_first_changed_line(
    privacy_ledger: PrivacyLedger, private: TrainingPlan, folder: Path
) -> None:
    settings = SiteSettings("mercy", folders=FoldersSettings(state=folder.parent))
    privacy_ledger.charge(private, 1)
    (line,) = check_privacy(settings)
    assert (line.color, line.found) == (Color.GREEN, "2 charges unbroken and signed")
    path = folder / "privacy.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seq":2', b'"seq":3'))
    (line,) = check_privacy(settings)
    assert line.color is Color.RED
    assert "broken at entry 2" in line.found


def test_plan_show_says_what_a_private_plan_spends_and_costs(
    typed: Type, folder: Path, private: TrainingPlan, consortium: Consortium
) -> None:
    Plans(folder / "plans").keep(
        sign_plan(private, consortium.custodian), private.digest, consortium.custodian.public_key()
    )
    text = typed("plan", "show", private.digest.hex()).output
    assert "after each tenth of the run" in text
    assert "noise over signal" in text
    assert "4 evaluations with histograms" in text
    assert "bytes leave a round" in text
    assert "not noised" not in text


def test_plan_show_says_in_one_line_that_a_sum_is_not_noised(folder: Path, plan: TrainingPlan) -> None:
    held = Plans(folder / "plans")
    text = describe(
        held.keep(sign_plan(plan, custodian := Ed25519PrivateKey.generate()), plan.digest, custodian.public_key()),
        PolicySettings(),
        SpentPrivacy((), 0.2),
    )
    (line,) = (line for line in text.splitlines() if line.startswith("privacy"))
    assert "the sum is not noised" in line


@pytest.mark.parametrize(("ratio", "words"), [(0.3, "usable"), (0.31, ".02 to .1"), (1.0, ".02 to .1"), (1.1, "eats")])
def test_the_measured_rule_in_words(ratio: float, words: str) -> None:
    assert words in noise_words(ratio)
