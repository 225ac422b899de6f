import pytest
from nestling.recipes.cli_arguments import rewrite_arguments


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            "export M --budgets A B C --output D",
            "export M --budgets A --budgets B --budgets C --output D",
        ),
        ("export M --budgets A --output D", "export M --budgets A --output D"),
        ("export M --budgets A --budgets B", "export M --budgets A --budgets B"),
        ("export M --budget A --output D", "export M --budget A --output D"),
        ("evaluate M --budgets A B data.path=x", "evaluate M --budgets A --budgets B data.path=x"),
        ("train recipe=a --debug lr=1", "--debug train recipe=a lr=1"),
        ("--debug train --debug", "--debug train"),
        ("export --budgets", "export --budgets"),
        ("x --budgets A -- B --debug", "x --budgets A -- B --debug"),
        ("", ""),
    ],
)
def test_rewrite(given: str, wanted: str) -> None:
    assert rewrite_arguments(given.split()) == wanted.split()
