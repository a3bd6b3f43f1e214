import pickle

import pytest

from trellis import _trellis, errors


def test_every_code_of_the_grid_has_its_exception_and_exit_code():
    codes = _trellis.error_codes()
    assert {name for name, _, _ in codes} == set(errors._BY_CODE)
    for name, exit_code, retryable in codes:
        error = errors._from_code(name, "what", "do", "d", "s", "h", retryable)
        assert (error.exit_code, error.retryable, error.code) == (exit_code, retryable, name)


def test_errors_are_what_python_calls_them():
    assert issubclass(errors.BadRequest, ValueError)
    assert issubclass(errors.UnknownSymbol, KeyError)
    assert issubclass(errors.MissingPackage, ImportError)


def test_the_message_is_shown_as_it_is_with_what_to_do():
    error = errors.UnknownField("equities.daily has no field clsoe", hint="did you mean close?")
    assert str(error) == "equities.daily has no field clsoe\n  hint: did you mean close?"
    assert str(errors.UnknownField("x y")) == "x y"


@pytest.mark.parametrize("cls", [getattr(errors, name) for name in errors.__all__], ids=lambda c: c.__name__)
def test_errors_travel_between_processes(cls):
    error = cls("what", hint="do", dataset="d")
    error.traceback = "there"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls and str(back) == str(error) and back.dataset == "d" and back.traceback == "there"
