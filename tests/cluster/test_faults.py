"""What may happen on a cluster, and the tests of it: afterwards every case has one result or one named failure."""

from __future__ import annotations

import re

import pytest
from places import REPOSITORY

ARRAY, DASK, SUBMIT = "cluster/test_on_slurm", "cluster/test_dask_on_slurm", "cluster/test_submit"
FAULTS = {
    # fault: (tests of job arrays, and of what all modes share), (tests of --executor dask)
    "a case fails, or kills its process": (
        (f"{ARRAY}::test_an_array_of_two_stages",),
        (
            "run/test_dask::test_results_are_those_of_workers",
            f"{DASK}::test_a_child_that_dies_fails_its_case",
        ),
    ),
    "a job is killed": ((f"{ARRAY}::test_a_job_that_is_killed",), (f"{DASK}::test_lost_jobs_are_replaced",)),
    "a worker is killed": (
        (f"{ARRAY}::test_a_stage_that_is_killed", f"{ARRAY}::test_what_surrounds_a_shard_is_killed"),
        ("run/test_dask::test_a_lost_workers_case_is_done_by_another",),
    ),
    "a job takes too much memory": (
        (f"{ARRAY}::test_a_job_that_takes_too_much_memory",),
        (f"{DASK}::test_a_case_that_takes_too_much_memory",),
    ),
    "a job reaches its time limit": ((f"{ARRAY}::test_the_time_limit",), (f"{DASK}::test_lost_jobs_are_replaced",)),
    "a job gives way to another": (
        (f"{ARRAY}::test_a_job_that_gives_way_to_another",),
        (f"{DASK}::test_lost_jobs_are_replaced",),
    ),
    "a node fails": ((f"{ARRAY}::test_a_node_that_fails",), (f"{DASK}::test_lost_jobs_are_replaced",)),
    "a signal, at any moment": (
        (
            f"{ARRAY}::test_a_shard_that_is_stopped_is_continued",
            "test_start_up::test_at_any_moment",
            f"{SUBMIT}::test_exit_codes",
        ),
        (f"{DASK}::test_a_run_that_is_stopped", "run/test_dask::test_signals"),
    ),
    "medkit itself is killed": (
        ("run/test_kill::test_killed_at_random_moments",),
        (f"{DASK}::test_a_run_that_is_killed_leaves_no_job_and_no_process",),
    ),
    "no jobs are accepted, or they end at once": (
        (f"{SUBMIT}::test_a_scheduler_that_refuses_can_be_asked_again",),
        (
            f"{DASK}::test_jobs_that_cannot_be",
            f"{DASK}::test_a_scheduler_that_takes_no_jobs_for_a_while",
            f"{DASK}::test_a_scheduler_that_takes_no_jobs_any_more",
            "run/test_dask::test_the_rest_is_named_when_no_worker_is_left",
            "run/test_dask::test_a_scheduler_that_goes",
        ),
    ),
    "jobs stay in the queue": (
        ("cluster/test_schedulers::test_shards_in_the_queue_are_not_submitted_again",),
        (f"{DASK}::test_jobs_that_stay_in_the_queue", f"{DASK}::test_jobs_end_while_no_case_arrives"),
    ),
    "a case hangs": (
        (
            "run/test_loop::test_time_limit",
            "run/test_processes::test_time_limit_in_workers",
        ),
        (
            "run/test_dask::test_limits_and_missing_weights",
            f"{DASK}::test_a_native_call_that_holds_the_interpreter",
        ),
    ),
    "two runs meet at a result": (
        (
            f"{ARRAY}::test_two_equal_arrays_do_nothing_twice",
            "run/test_waiting::test_a_result_that_another_process_makes_is_waited_for_and_kept",
        ),
        ("run/test_dask::test_a_lost_workers_case_is_done_by_another",),
    ),
    "the disk is full": (
        ("run/test_no_room::test_the_run_ends", "run/test_no_room::test_a_disk_that_is_really_full"),
        ("run/test_dask::test_results_are_those_of_workers",),
    ),
    "shards list for themselves": (("run/test_shards::test_shards_that_list_for_themselves",), ()),
    "the list is changed": ((f"{SUBMIT}::test_a_list_that_was_changed_is_refused",), ()),
    "a part of an array": (
        (
            f"{ARRAY}::test_one_task_of_the_array_by_hand",
            "pipe/test_lines::test_arrays_with_holes_or_parts_of_arrays_are_refused",
        ),
        (),
    ),
    "an array is too long": ((f"{SUBMIT}::test_longer_than_arrays_may_be",), ()),
    "shards share a file": (("run/test_shards::test_lists_of_failures_have_a_file_for_each_shard",), ()),
    "threads and GPUs are not those of the job": (
        ("machine/test_threads::test_the_least_of_two_grants", f"{ARRAY}::test_each_job_has_gpus_of_its_own"),
        (f"{DASK}::test_threads_are_the_cores_of_a_job", "run/test_dask::test_jobs_of_other_schedulers"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_a_test(fault: str) -> None:
    missing = []
    for name in (name for tests in FAULTS[fault] for name in tests):
        file, _, function = name.partition("::")
        text = (REPOSITORY / "tests" / f"{file}.py").read_text()
        if not re.search(rf"^def {function}\(", text, re.MULTILINE):
            missing.append(name)
    assert missing == []
