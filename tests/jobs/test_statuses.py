import pytest

from fvae_nnunet.cli import preprocess
from fvae_nnunet.jobs.statuses import joint_status
from fvae_nnunet.jobs.submit import _status


@pytest.mark.parametrize(
    ("statuses", "joint"),
    [([], 0), ([0, 0], 0), ([0, 75], 75), ([75, 1], 1), ([1, 75], 1), ([75, 3, 1], 3), ([0, 137, 75], 137)],
)
def test_a_failure_is_not_hidden_by_what_is_incomplete(statuses, joint):
    assert joint_status(statuses) == joint


@pytest.mark.parametrize("statuses", [[1, 75], [75, 1]])
def test_one_dataset_that_fails_fails_the_command(statuses, monkeypatch):
    each = iter(statuses)
    monkeypatch.setattr(preprocess, "_run_views", lambda arguments: next(each))
    assert preprocess.main(["-d", "7", "8"]) == 1


class _Job:
    job_id = "7"

    class paths:
        stderr = "log"

    def __init__(self, status):
        self.status = status

    def result(self):
        if self.status is None:
            raise RuntimeError("it was cancelled")
        return self.status


@pytest.mark.parametrize(
    ("statuses", "one_is_enough", "joint"),
    [([75, 1], True, 1), ([75, None], True, 1), ([None, 3], True, 3), ([75, 0], True, 0), ([0, None], False, 1)],
)
def test_jobs_that_fail_are_not_hidden_by_those_that_are_incomplete(statuses, one_is_enough, joint):
    assert _status([_Job(status) for status in statuses], one_is_enough, lambda line: None) == joint
