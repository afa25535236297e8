"""Help that is made of the tables by which the program works: keys of a job file, states, manual page, completion."""

import glob
import os
import re
import shutil
import subprocess

import pytest

import tw

JOBS = os.path.join(os.path.dirname(__file__), "../../jobs")


def page(name):
    code, out, err = tw.run("help", name)
    assert code == 0 and not err, out + err
    return out


def test_every_key_of_a_job_file():
    """Every key that an example uses is explained, with its default and what it may be; so are the sections."""
    text = page("job")
    for path in glob.glob(JOBS + "/*.ini"):
        with open(path) as f:
            section = None
            for line in f:
                found = re.match(r"\[(\w+)", line)
                section = found[1] if found else section
                key = re.match(r"[; ]{0,2}([a-z_.]+) = ", line)
                if key and section not in ("a", "b"):
                    assert re.search(rf"^  {re.escape(key[1])}(,| )", text, re.M), (path, key[1])
                assert not found or re.search(rf"^\[{section}[ \]]", text, re.M), (path, section)
    assert re.search(r"  chunk_size .*\n +default 64MB, 1MB to 64TB\n", text)
    assert re.search(r"  connection .*\n +default 720min, 10min to 1d\n", text)


def test_states():
    """A graph: every state can be reached from the start and, but for the wrong ones, left again."""
    moves = re.findall(r'^  (\w+) -> (\w+) \[label="[^"]+"\];$', page("states"), re.M)
    seen, todo = set(), ["NotStarted"]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += [to for of, to in moves if of == state]
    assert seen == {s for move in moves for s in move} == {of for of, _ in moves}
    assert {"Prechecking", "PrecheckFailed", "Initializing", "Running", "Retrying", "Paused", "Modifying", "Failed"} < seen


@pytest.mark.skipif(not shutil.which("man"), reason="no man here")
def test_manual_page(tmp_path):
    """man takes it without a warning, and shows it all."""
    path = tmp_path / "twsync.1"
    path.write_text(page("man"))
    shown = subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", str(path)], capture_output=True, text=True, check=True,
                           env={**os.environ, "MANWIDTH": "160", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"})
    assert shown.stderr == "", shown.stderr
    for words in ("twsync resync", "on_conflict_latest", "--transaction", "default 64MB, 1MB to 64TB"):
        assert words in shown.stdout, words


@pytest.mark.parametrize("line, want", (
    ("twsync re", {"reload", "resync", "resume", "repair", "reset", "release"}), ("twsync pause x.ini --t", {"--task"}),
    ("twsync pause x.ini --task ", {"forward", "reverse"}), ("twsync help ", {"job", "states", "man", "bash"}),
    ("twsync run ", {"one.ini", "folder"}), ("twsync conflicts x.ini --ta", {"--task", "--table", "--take"})))
def test_completion(tmp_path, line, want):
    """Commands, options of a command, their values, job files."""
    (tmp_path / "one.ini").write_text("")
    (tmp_path / "other.txt").write_text("")
    (tmp_path / "folder").mkdir()
    script = page("bash") + ('\ncompopt() { :; }; read -ra COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=(""); '
                             'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _twsync; printf "%s\\n" "${COMPREPLY[@]}"')
    told = subprocess.run(["bash", "-c", script, "-", line], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(told.stdout.split()) == want, told.stderr
