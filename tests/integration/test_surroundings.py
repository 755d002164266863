"""Odd environments: locales, names, clocks, and what a run must not write down."""

import os
import subprocess
import sys

from tests.support import launch

SECRETS = {
    "HTTPS_PROXY": "http://user:the-secret-1@127.0.0.1:9",
    "HF_TOKEN": "the-secret-2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/the-secret-3.json",
    "AWS_SECRET_ACCESS_KEY": "the-secret-4",
}
# Of a machine that nobody has set up. Python would take the locale C for UTF-8, but not if it is told so.
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_no_home_no_utf8_a_jumping_clock_and_names_of_all_kinds(tiny_run, tmp_path):
    model_dir = tmp_path / "größe of 文字" / "it's [1]"
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.jumping_clock", *launch.arguments(model_dir)],
        cwd=launch.ROOT,
        env={**BARE, **SECRETS, "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert launch.losses(model_dir) == launch.losses(tiny_run)
    assert (model_dir / "eval.csv").read_text() == (tiny_run / "eval.csv").read_text()
    # One folder by each name, whoever made it.
    assert [list(path.iterdir()) for path in (tmp_path, model_dir.parent)] == [[model_dir.parent], [model_dir]]
    written = [path.read_bytes() for path in model_dir.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [text for text in (done.stdout, done.stderr, *written) if b"the-secret" in text]
