"""A card read back is the card written, and a file in which one bit was flipped is none."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from petscale import config as configs
from petscale.cards.card import read_card, write_card
from petscale.cards.table import NOT_STATED
from petscale.cli import main
from storage.errors import InputError
from trainers import checkpoint


def test_a_card_comes_back_as_it_was_written(card: Path, tmp_path: Path) -> None:
    before = read_card(card)
    tensors, facts = checkpoint.read_weights(card)
    odd = replace(before, drfs=(4.0, math.nan), licence="\u202eCC0\x1b[31m", spacing_mm=None)
    write_card(tmp_path / "new" / "odd.safetensors", odd, tensors, {"config": facts["config"]})
    after = read_card(tmp_path / "new" / "odd.safetensors")
    assert math.isnan(after.drfs[1])
    assert math.isnan(after.scores[0].scores[0].sd)  # of one case
    assert repr(after) == repr(odd)


def test_a_flipped_bit_is_seen_wherever_it_is(card: Path, tmp_path: Path) -> None:
    content = card.read_bytes()
    rng = np.random.default_rng(0)
    places = {*range(24), *rng.choice(len(content), 150, replace=False).tolist(), len(content) - 1}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "card.safetensors").write_bytes(flipped)
        with pytest.raises(InputError, match=r"^(CKPT_DAMAGED|CKPT_CARD) card\.safetensors"):
            read_card(tmp_path / "card.safetensors")


def test_inspect_shows_it_in_words(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(card)])
    out = capsys.readouterr().out
    for said in (
        "card.safetensors: weights of red_cnn",
        "a low-dose PET in SUVbw",
        "CC0",
        "2 cases of 1 patient",
        "4, 20",
        "25 x 15 x 14, from 24 x 15 x 14 to 25 x 15 x 14",
        "FDG (2)",
        "SIEMENS Biograph64_Vision (2)",
        "PSNR, body [dB]",
        "not for clinical use",
        "limit: A network trained on one scanner",
    ):
        assert said in out, said
    row = next(line for line in out.splitlines() if line.startswith("PSNR, body"))
    assert row.split()[-3:] == ["30.00", "33.00", "36.00"]


def test_inspect_says_what_is_not_stated(from_ct: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(from_ct)])
    out = capsys.readouterr().out
    assert "a CT in HU" in out
    assert "dose reduction" not in out
    assert out.count(NOT_STATED) == 4  # licence, tracers, nuclides, scanners
    assert "It was not evaluated" in out


def test_inspect_writes_json_and_takes_no_option_of_cohorts(
    card: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    main(["inspect", str(card), "--json", str(tmp_path / "card.json")])
    content = json.loads((tmp_path / "card.json").read_bytes())
    assert content["drfs"] == [4.0, 20.0]
    assert content["tracers"] == {"FDG": 2}
    config = configs.read(tmp_path / "card.json")  # petscale train --config takes it
    assert (config.recipe, config.model.channels, config.feed.suv_scale) == ("red_cnn", 2, 5.0)
    assert refused("inspect", card, "--cases").startswith("CFG_NO_EFFECT --cases")
    assert refused("inspect", card, "--page", tmp_path / "p.html").startswith("CFG_NO_EFFECT --page")
    assert refused("inspect", tmp_path / "absent.safetensors").startswith("IMG_NO_FILE absent.safetensors")


def test_nothing_in_a_card_gives_the_terminal_orders(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, facts = checkpoint.read_weights(card)
    write_card(
        tmp_path / "odd.safetensors", replace(read_card(card), licence="\x1b[31m", limits=("\x1b[2J",)), tensors, facts
    )
    main(["inspect", str(tmp_path / "odd.safetensors")])
    assert "\x1b" not in capsys.readouterr().out
