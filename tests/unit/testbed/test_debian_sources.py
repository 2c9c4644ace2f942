"""Finding the machine's Debian mirror in apt's own files."""

import pytest

from htcondor_vpn.errors import ConfigError
from htcondor_vpn.testbed.debian_sources import Source, main_mirror, sources

FRESH = """\
Types: deb
# a comment between
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def machine(tmp_path):
    """Writes apt files and returns the mirror found; `bookworm` is what /etc/os-release says."""
    release = tmp_path / "os-release"
    release.write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\n')

    def mirror(**files):
        apt = tmp_path / "apt"
        (apt / "sources.list.d").mkdir(parents=True)
        for name, text in files.items():
            path = name.replace("_", ".")
            (apt / (path if path == "sources.list" else f"sources.list.d/{path}")).write_text(text)
        return main_mirror(apt, release)

    return mirror


def test_the_deb822_file_of_a_fresh_machine(machine):
    assert machine(debian_sources=FRESH) == "http://mirror.example/debian"


def test_the_classic_file(machine):
    text = """
        # deb http://old.example/debian bookworm main
        deb http://mirror.example/debian-security bookworm-security main contrib
        deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian/ bookworm main contrib # ours
        deb-src http://sources.example/debian bookworm main
    """
    assert machine(sources_list=text) == "https://mirror.example/debian/"


def test_other_projects_packages_are_not_the_mirror(machine):
    assert (
        machine(
            cloud_list="deb http://cloud.example/apt cloud-sdk-bookworm main\n",
            docker_list="deb http://docker.example/debian bookworm stable\n",
            node_sources="Types: deb\nURIs: http://node.example\nSuites: nodistro\nComponents: main\n",
            zz_sources=FRESH,
        )
        == "http://mirror.example/debian"
    )


def test_disabled_and_source_only_stanzas_do_not_count(machine):
    off = FRESH.replace("Types: deb\n", "Enabled: no\nTypes: deb\n", 1).replace("mirror", "off")
    source_only = FRESH.replace("Types: deb\n", "Types: deb-src\n").replace("mirror", "src")
    assert machine(a_sources=off, b_sources=source_only, c_sources=FRESH) == "http://mirror.example/debian"


def test_folded_fields_and_several_uris(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/a.sources").write_text(
        "Types: deb deb-src\nURIs: http://one.example\n http://two.example\n"
        "Suites: bookworm\nComponents: main contrib\n"
    )
    assert list(sources(tmp_path)) == [
        Source("http://one.example", ("bookworm",), ("main", "contrib")),
        Source("http://two.example", ("bookworm",), ("main", "contrib")),
    ]


def test_a_mirror_list_is_passed_on_as_it_is(machine):
    text = FRESH.replace("http://mirror.example/debian\n", "mirror+file:///etc/apt/mirrors/debian.list\n")
    assert machine(debian_sources=text) == "mirror+file:///etc/apt/mirrors/debian.list"


def test_no_mirror_is_an_error_with_a_remedy(machine):
    with pytest.raises(ConfigError, match="HTCONDOR_VPN_TEST_MIRROR"):
        machine(sources_list="deb http://docker.example/debian bookworm stable\n")
