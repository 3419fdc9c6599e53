import json

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.nnunet.case_reports import CaseReport
from fvae_nnunet.nnunet.files import read_splits
from fvae_nnunet.nnunet.patient_splits import check_leakage, deal_folds, write_folds


def _cases(patients, split="train"):
    """Cases ``p1_0``, ``p1_1``, ... from patient -> number of cases."""
    return {
        f"{patient}_{number}": CaseReport(patient, split, f"{patient}_{number}.nii.gz")
        for patient, count in patients.items()
        for number in range(count)
    }


CASES = _cases({f"p{number}": 1 + number % 3 for number in range(20)})


def test_no_patient_is_on_both_sides_and_every_case_is_validated_once():
    folds = deal_folds(CASES, 5)
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(CASES)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(CASES)
        assert not {CASES[case].patient for case in fold["train"]} & {CASES[case].patient for case in fold["val"]}
    sizes = [len(fold["val"]) for fold in folds]
    # dealing to the emptiest fold leaves them apart by at most the largest patient
    assert max(sizes) - min(sizes) <= 3


def test_folds_do_not_depend_on_the_order_of_the_cases():
    assert deal_folds(dict(reversed(CASES.items())), 5) == deal_folds(CASES, 5)


def test_test_cases_are_in_no_fold():
    folds = deal_folds(CASES | _cases({"q": 2}, "test"), 5)
    assert not any("q_0" in fold["train"] + fold["val"] for fold in folds)


def test_patients_keep_their_fold_when_others_are_added():
    before = deal_folds(CASES, 5)
    more = CASES | _cases({"new1": 2, "new2": 1, "p3": 4})
    after = deal_folds(more, 5, before)
    for fold, fold_before in zip(after, before):
        assert set(fold_before["val"]) <= set(fold["val"])
    check_leakage(more, after)
    home = next(number for number, fold in enumerate(before) if "p3_0" in fold["val"])
    assert "p3_3" in after[home]["val"]


def test_new_patients_fill_the_smaller_folds():
    before = [{"train": ["b_0"], "val": [f"a_{n}" for n in range(5)]}, {"train": ["a_0"], "val": ["b_0"]}]
    dealt = deal_folds(_cases({"a": 5, "b": 1} | {f"new{n}": 1 for n in range(4)}), 2, before)
    assert [len(fold["val"]) for fold in dealt] == [5, 5]


def test_too_few_patients_are_refused():
    with pytest.raises(UserError, match="2 training patients cannot fill 5 folds"):
        deal_folds(_cases({"a": 9, "b": 9}), 5)
    with pytest.raises(UserError, match="at least 2"):
        deal_folds(CASES, 1)
    with pytest.raises(UserError, match="already 5 folds, not 4"):
        deal_folds(CASES, 4, deal_folds(CASES, 5))


def test_a_patient_in_training_and_test_is_named():
    cases = _cases({"a": 1, "b": 1})
    cases["a_9"] = CaseReport("a", "test", "a_9.nii.gz")
    with pytest.raises(UserError, match=r"1 patient in both training \(Tr\) and test \(Ts\): a \(a_0, a_9\)"):
        check_leakage(cases)


def test_a_patient_on_both_sides_of_a_fold_is_named():
    cases = _cases({"a": 2, "b": 1, "c": 1})
    good = {"train": ["b_0", "c_0"], "val": ["a_0", "a_1"]}
    check_leakage(cases, [good])
    with pytest.raises(UserError, match=r"training and validation of fold 1: a \(a_0, a_1\)"):
        check_leakage(cases, [good, {"train": ["a_0", "b_0"], "val": ["a_1", "c_0"]}])


def test_folds_with_unknown_or_test_cases_are_refused():
    cases = _cases({"a": 1, "b": 1}) | _cases({"t": 1}, "test")
    with pytest.raises(UserError, match=r"fold 0 has x_0, which is not in reports\.json"):
        check_leakage(cases, [{"train": ["a_0"], "val": ["x_0"]}])
    with pytest.raises(UserError, match="fold 0 has t_0, which is a test case"):
        check_leakage(cases, [{"train": ["a_0"], "val": ["t_0"]}])


def test_the_file_is_nnunets_and_a_leaking_one_is_kept_as_it_is(tmp_path):
    path = tmp_path / "splits_final.json"
    assert write_folds(path, CASES, 5) == read_splits(path)
    content = json.loads(path.read_text())
    assert isinstance(content, list) and set(content[0]) == {"train", "val"}
    leaking = [{"train": ["p1_0", "p2_0"], "val": ["p1_1"]}, {"train": ["p1_1"], "val": ["p1_0", "p2_0"]}]
    path.write_text(json.dumps(leaking))
    with pytest.raises(UserError, match="the existing folds leak: p1 is validated in fold 0 and in fold 1"):
        write_folds(path, CASES, 2)
    assert read_splits(path) == leaking
    check_leakage(CASES, write_folds(path, CASES, 2, anew=True))
    path.write_text('{"train": []}')
    with pytest.raises(UserError, match="its content must be a list, not"):
        read_splits(path)
