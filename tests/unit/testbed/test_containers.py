"""The recipes of the container images; `make containers` builds them."""

import re

import pytest

from htcondor_vpn.testbed.containers import IMAGES, RECIPES, TRIAL


@pytest.mark.parametrize("image", IMAGES)
def test_a_recipe_names_no_host_and_takes_what_it_is_given(image):
    text = (RECIPES / f"{image}.def").read_text()
    assert not re.search(r"https?://|pypi|docker", text)
    assert set(re.findall(r"\{\{ *(\w+) *\}\}", text)) == {"mirror", "wheels"}
    assert text.startswith("Bootstrap: debootstrap\n")


def test_the_trial_is_a_program():
    compile(TRIAL, "trial", "exec")
