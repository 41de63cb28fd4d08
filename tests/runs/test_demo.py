"""The demonstration: equal gradients, two times, and when the main command begins with it."""

import re

import pytest
import torch

from innerloop import cli, demo


def test_show_says_both_times_and_that_gradients_agree(capsys):
    threads = torch.get_num_threads()
    demo.show(seconds=0.0)
    head, loop, ours, gradients = capsys.readouterr().out.splitlines()
    assert head.startswith("MAML's sine regression")
    assert re.fullmatch(r"  loop in plain PyTorch +[\d.]+ ms", loop)
    assert re.fullmatch(r"  innerloop +[\d.]+ ms +\d+ times faster, (fused|torch) back end", ours)
    assert float(re.search(r"equal to (\S+) of", gradients)[1]) < demo.TOLERANCE
    assert torch.get_num_threads() == threads


def test_show_refuses_gradients_that_differ(monkeypatch, capsys):
    loop = demo.plain_loop
    monkeypatch.setattr(demo, "plain_loop", lambda *problem: 1.001 * loop(*problem))
    with pytest.raises(RuntimeError, match=r"differ by 1\.0e-03 of their size"):
        demo.show(seconds=0.0)
    assert capsys.readouterr().out == ""


def test_problem_is_the_same_each_time_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = demo.problem(torch.float32), demo.problem(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip((*first[1], *first[2]), (*second[1], *second[2]), strict=True):
        assert torch.equal(a, b)
        assert a.shape == (demo.TASKS, demo.ROWS, 1)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["compare"], True), (["demo"], True), (["compare", "--help"], False), (["info"], False)],
    ids=["compare", "demo", "compare-help", "info"],
)
def test_who_shows_it(arguments, shown, monkeypatch, tmp_path):
    """Only `innerloop compare` without arguments, which runs the built-in data, and `demo`."""
    pytest.importorskip("innerloop.compare.run", reason="needs innerloop[cli]")
    calls = []
    monkeypatch.setattr(demo, "show", lambda: calls.append("demo"))
    monkeypatch.setattr(
        "innerloop.compare.run.run_comparison", lambda *a, **k: calls.append("compare")
    )
    assert cli.run(arguments) == 0
    assert calls == (["demo"] if shown else []) + (["compare"] if arguments == ["compare"] else [])
