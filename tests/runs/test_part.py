"""Directories of runs: claimed by one process, complete or not there, and nobody's work is deleted."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fisherlab.errors import FisherlabError, InputError
from fisherlab.runs import lock
from fisherlab.runs.directory import numbered, part_of
from fisherlab.runs.part import RunPart, together

fork = multiprocessing.get_context("fork")  # with everything imported

TRAINING, COMPARISON = 'command = "train"\n', 'command = "compare"\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and nobody who waits for a lock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "_WAIT", 0.0)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def finished(out: Path, content: str = "") -> None:
    with RunPart.claim(out) as part, part.written() as folder:
        (folder / "provenance.json").write_text(content)


@pytest.fixture
def killed(place: Path) -> Callable[[Path, str], int]:
    """Kills a process while it writes a directory with that `config.toml`; gives its pid."""

    def leave(out: Path, config: str) -> int:
        begun = fork.Event()

        def work() -> None:
            part = RunPart.claim(out)
            folder = part.begin()
            (folder / "config.toml").write_text(config)
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / ".tmpA1b2").touch()
            (folder / ".log.jsonl.x.part").touch()
            begun.set()
            signal.pause()

        process = fork.Process(target=work)
        process.start()
        assert begun.wait(30)
        with pytest.raises(InputError, match=rf"is being written by another process \({process.pid}\)"):
            RunPart.claim(out, force=True)
        process.kill()
        process.join()
        assert part_of(out).is_dir()
        assert lock.lock_of(out).is_file()
        return process.pid

    return leave


def together_in(count: int, work: Callable[[Any], Any]) -> list[Any]:
    """What processes give that start at one moment and end when all have something to give."""
    barrier, answers = fork.Barrier(count), fork.Queue()

    def one() -> None:
        barrier.wait()
        work(lambda answer: (answers.put(answer), barrier.wait()))

    processes = [fork.Process(target=one) for _ in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


def test_of_names_every_process_has_its_own(place):
    """All hold their directories at once, and all end with what they have written."""

    def work(answer) -> None:
        with RunPart.claim(numbered(place / "runs" / "x")) as part, part.written() as folder:
            (folder / "pid").write_text(str(os.getpid()))
            answer((part.out.name, os.getpid()))

    found = dict(together_in(8, work))
    assert set(found) == {"x", *(f"x-{number}" for number in range(2, 9))}
    assert {path.parent.name: int(path.read_text()) for path in place.glob("runs/*/pid")} == found
    assert files(place / "runs") == {name for out in found for name in (out, f"{out}/pid")}


@pytest.mark.parametrize("force", [False, True])
def test_of_processes_that_want_one_directory_one_has_it(place, monkeypatch, force):
    monkeypatch.setattr(lock, "_WAIT", 1.0)  # so long, the one that has it has signed
    if force:
        finished(place / "run")

    def work(answer) -> None:
        try:
            with RunPart.claim(place / "run", force=force) as part, part.written() as folder:
                (folder / "provenance.json").write_text(str(os.getpid()))
                answer(os.getpid())
        except InputError as error:
            answer(str(error))

    found = together_in(5, work)
    (winner,) = (one for one in found if isinstance(one, int))
    refusals = [one for one in found if isinstance(one, str)]
    assert len(refusals) == 4
    for message in refusals:
        assert f"is being written by another process ({winner}); wait for it, or choose another" in message
        assert "--force" not in message
    assert (place / "run" / "provenance.json").read_text() == str(winner)
    assert files(place) == {"run", "run/provenance.json"}


def test_a_lock_file_that_was_unlinked_while_it_was_opened_guards_nothing(place):
    """Owners come and go; at no moment are there two."""
    owner = place / "owner"

    def work(answer) -> None:
        done = 0
        while done < 40:
            try:
                held = lock.DirectoryLock.of(place / "run")
            except lock.BusyError:
                continue
            owner.touch(exist_ok=False)
            owner.unlink()
            held.release()
            done += 1
        answer(done)

    assert together_in(3, work) == [40, 40, 40]
    assert not files(place)


def test_what_a_killed_run_left_is_swept_by_the_next(place, killed):
    killed(place / "run", COMPARISON)
    finished(place / "run")
    assert files(place) == {"run", "run/provenance.json"}


def test_what_can_be_continued_is_kept_and_cleaned(place, killed):
    killed(place / "run", TRAINING)
    for attempt in (lambda: RunPart.claim(place / "run"), lambda: finished(place / "run")):
        with pytest.raises(
            InputError, match=r"has not ended; continue it with --resume .*run, or start anew"
        ):
            attempt()
    for run in (place / "run", place / "run.part"):
        with RunPart.reopen(run) as part:
            assert part.begun
            assert part.out == place / "run"
            kept = {"run.part", "run.part/config.toml", "run.part/checkpoints"}
            assert files(place) == {".run.part.lock", *kept}
    part = RunPart.claim(place / "run", force=True)
    part.release()
    assert (place / "run.part" / "config.toml").is_file()  # nothing was begun in its place
    with RunPart.claim(place / "run", force=True) as part:
        part.begin()
    assert files(place) == {"run.part"}


def test_what_killed_runs_left_beside_a_new_name_is_swept(place, killed):
    killed(place / "runs" / "dead", COMPARISON)
    killed(place / "runs" / "begun", TRAINING)
    (place / "runs" / "other.part").mkdir()  # of nobody that is known
    with RunPart.claim(place / "runs" / "alive") as alive:
        (alive.begin() / "file").touch()
        with RunPart.claim(numbered(place / "runs" / "new")) as part:
            assert part.out.name == "new"
        left = {path.name for path in (place / "runs").iterdir()}
        assert left == {"begun.part", "other.part", "alive.part", ".alive.part.lock"}
        assert (alive.path / "file").exists()


def test_what_died_on_another_machine_is_left_alone(place, killed):
    killed(place / "runs" / "dead", COMPARISON)
    lock.lock_of(place / "runs" / "dead").write_text("1\nelsewhere\n")
    RunPart.claim(numbered(place / "runs" / "new")).release()
    assert part_of(place / "runs" / "dead").is_dir()


def test_a_run_that_is_replaced_is_there_until_the_end(place):
    finished(place / "run", "old")
    with pytest.raises(ZeroDivisionError), RunPart.claim(place / "run", force=True) as part, part.written():
        raise ZeroDivisionError
    assert (place / "run" / "provenance.json").read_text() == "old"
    with RunPart.claim(place / "run", force=True) as part, part.written() as folder:
        (folder / "provenance.json").write_text("new")
        assert (place / "run" / "provenance.json").read_text() == "old"
    assert (place / "run" / "provenance.json").read_text() == "new"
    assert files(place) == {"run", "run/provenance.json"}


def test_killed_between_the_two_renames_the_old_run_is_back(place, monkeypatch):
    finished(place / "run", "old")
    original = Path.rename

    def rename(self, target):
        if self.name == "run.part":
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with RunPart.claim(place / "run", force=True) as part:
            (part.begin() / "provenance.json").write_text("new")
            with pytest.raises(KeyboardInterrupt):
                part.finish()
    assert not (place / "run").exists()
    with pytest.raises(InputError, match="exists already"):
        RunPart.claim(place / "run")
    assert (place / "run" / "provenance.json").read_text() == "old"


def test_what_another_program_made_meanwhile_is_not_deleted(place):
    with RunPart.claim(place / "run") as part:
        part.begin()
        (place / "run").mkdir()
        (place / "run" / "thesis.tex").touch()
        with pytest.raises(InputError, match="exists already"):
            part.finish()
    assert (place / "run" / "thesis.tex").exists()


def test_nothing_that_is_half_written_is_in_a_finished_run(place):
    with RunPart.claim(place / "run") as part:
        folder = part.begin()
        for name in (
            ".tmp1",
            ".log.jsonl.a.part",
            "runs/.b.part.lock",
            "runs/b.part/config.toml",
            "runs/a/f",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        part.finish()
    assert files(place / "run") == {"runs", "runs/a", "runs/a/f"}


def test_a_claim_alone_leaves_no_trace(place):
    RunPart.claim(place / "a" / "b" / "run").release()
    assert not files(place)


def test_a_failure_while_writing_is_one_sentence(place):
    def fails() -> None:
        with RunPart.claim(place / "a" / "run") as part, part.written() as folder:
            (folder / "file").touch()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FisherlabError, match=r"cannot write .*run': No space left on device$"):
        fails()
    assert not files(place)


@pytest.mark.parametrize("out", [".", "..", "x/..", "link"])
def test_names_that_no_directory_can_be_given(place, out):
    (place / "x").mkdir()
    (place / "y").mkdir()
    (place / "link").symlink_to("y")
    with pytest.raises(InputError, match=r"working directory|is a link"):
        RunPart.claim(Path(out))
    assert files(place) == {"x", "y", "link"}


def test_where_there_are_no_locks_the_file_is_one(place, monkeypatch):
    def refuses(self) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock._acquire", refuses)
    with RunPart.claim(place / "run") as part:
        with pytest.raises(InputError, match=rf"being written by another process \({os.getpid()}\)"):
            RunPart.claim(place / "run")
        with part.written() as folder:
            (folder / "file").touch()
    assert files(place) == {"run", "run/file"}

    lock.lock_of(place / "far").write_text("1\nelsewhere\n")
    with pytest.raises(
        InputError, match=r"\(1 on elsewhere; if that one is dead, delete '.*far\.part\.lock'\)"
    ):
        RunPart.claim(place / "far")
    lock.lock_of(place / "far").unlink()

    held = fork.Process(target=lambda: (RunPart.claim(place / "other"), os.kill(os.getpid(), signal.SIGKILL)))
    held.start()
    held.join()
    assert lock.lock_of(place / "other").is_file()
    monkeypatch.setattr(lock, "_WAIT", 1.0)  # one look finds that it is dead, the next one takes it
    finished(place / "other")
    assert files(place) == {"run", "run/file", "other", "other/provenance.json"}


def test_without_other_processes_the_first_one_is_this_one(place):
    with together(lambda: RunPart.claim(place / "run")) as part:
        assert part.mine
    with pytest.raises(InputError, match="no interrupted run"):
        together(lambda: RunPart.reopen(place / "nowhere"))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_what_is_no_directory_is_not_replaced(place, make, force):
    """Also a device, a pipe or a link: the superuser could rename these away."""
    make(place / "out")
    before = (place / "out").lstat()
    with pytest.raises(InputError, match=r"is no directory|is a link"):
        RunPart.claim(place / "out", force=force)
    assert (place / "out").lstat() == before
    assert [path.name for path in place.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which nobody can make a file")
def test_a_place_where_no_file_can_be_made_is_not_called_busy():
    with pytest.raises(InputError, match=r"cannot make the directory '/proc/run' \(No such file"):
        RunPart.claim(Path("/proc/run"))
