import multiprocessing
import os
import signal
import sys
import threading

import pytest
from device_work import answer_of_a_fork

from fvae_nnunet.jobs.interruptions import interruptible

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def handlers(_=None):
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [
        signal.SIG_DFL,
        signal.default_int_handler,
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_interrupt_with_their_number_and_nothing_stays(number):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as interruption, interruptible():
        os.kill(os.getpid(), number)
    assert interruption.value.args == (number,)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and signal.getsignal(signal.SIGINT) is before


def test_forked_processes_have_the_usual_handlers():
    """Otherwise a pool that is terminated may wait forever."""
    with interruptible(), multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map(handlers, range(4)))
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=answer_of_a_fork, args=(answers,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and answers.get() == (True, True)


def test_a_process_that_is_ended_before_it_has_run_ends():
    """SIGTERM is sent right after the fork, as by a pool that has little to do."""
    with interruptible():
        for _ in range(20):
            child = os.fork()
            if child == 0:
                threading.Event().wait(20)
                os._exit(1)
            os.kill(child, signal.SIGTERM)
            assert os.waitpid(child, 0)[1] == signal.SIGTERM
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_other_handlers_and_other_threads_are_left_alone():
    def other(*_):
        pass

    signal.signal(signal.SIGTERM, other)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGTERM) is other
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seen = []

    def run():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
