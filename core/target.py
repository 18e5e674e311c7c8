"""What `kservekit serve` is given to serve: found, called and checked, with one sentence for what is wrong with it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from kservekit.errors import CannotStart, KServeKitError


def load_target(target: str) -> Any:
    """What `module:Name` or `path.py:Name` names: a model, or something that makes one or several, and checks them,
    when it is called with the model's name. CannotStart where there is none."""
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise CannotStart(f"{target!r} is not a target: expected module:Class or path.py:Class")
    module = _module_from(Path(where)) if where.endswith(".py") else _module_named(where, name)
    try:
        found = getattr(module, name)
    except AttributeError:
        classes = ", ".join(key for key, value in vars(module).items() if _is_class_of(module.__name__, value))
        raise CannotStart(f"{where} has no {name!r}; its classes: {classes or 'none'}") from None
    if not callable(found):
        raise CannotStart(f"{target} is {type(found).__name__}: expected a class, a factory or a model")
    return _checked(found, target, module.__name__)


def _module_named(where: str, name: str) -> Any:
    sys.path.insert(0, "")  # as `python -m` does, so that a module beside us is found
    with _its_authors_errors(where, where):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
                raise CannotStart(f"no module {where!r} here or installed; for a file write path.py:{name}") from None
            raise


def _module_from(path: Path) -> Any:
    if not path.is_file():
        raise CannotStart(f"{str(path)!r}: no such file")
    sys.path.insert(0, str(path.resolve().parent))  # as `python path.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CannotStart(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _its_authors_errors(str(path), path.stem):
        spec.loader.exec_module(module)
    return module


def _is_class_of(module: str, value: object) -> bool:
    return isinstance(value, type) and f"{value.__module__}.".startswith(f"{module}.")


@contextlib.contextmanager
def _its_authors_errors(where: str, module: str) -> Iterator[None]:
    """Whatever the target's module raises when it is imported becomes one sentence."""
    try:
        yield
    except KServeKitError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None:
            raise CannotStart(f"{where} cannot be imported: {_said(error)}{_place(error, module)}") from error
        missing = f"{where} needs the module {error.name!r}, which is not installed"
        raise CannotStart(f"{missing}{_place(error, module)}") from error
    except SystemExit as error:
        raise CannotStart(
            f"{where} ends the program when it is imported (exit code {error.code}){_place(error, module)}; "
            'put what is not for import under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise CannotStart(f"{where} cannot be imported: {_said(error)}{_place(error, module)}") from error


def _checked(found: Any, target: str, module: str) -> Any:
    """The model itself, or what makes it: with CannotStart for all that comes of it and is no model."""
    model_class = sys.modules["kserve"].Model  # `serve` has it imported
    if isinstance(found, model_class):
        return _initialized(found, target)
    if isinstance(found, type) and not issubclass(found, model_class):
        raise CannotStart(
            f"{target} is a class that is no model: expected a subclass of kservekit.serving.Predictor or "
            "Transformer, or of kserve.Model"
        )

    def make(name: str) -> Any:
        try:
            inspect.signature(found).bind(name)
        except TypeError as error:
            raise CannotStart(
                f"{target} cannot be called with the model's name alone: {error}; expected one argument, the name, "
                "and defaults for all others"
            ) from None
        except ValueError:
            pass  # it has no signature to look at
        try:
            model = found(name)
        except KServeKitError:
            raise
        except Exception as error:
            raise CannotStart(f"{target} raised {_said(error)}{_place(error, module)}") from error
        if inspect.iscoroutine(model):
            model.close()
            raise CannotStart(f"{target} is an async def: expected a plain def; a model's load() may be async")
        for one in model if isinstance(model, list) and model else [model]:
            if not isinstance(one, model_class):
                kind = "None" if one is None else f"a {type(one).__name__}"
                raise CannotStart(f"{target} returned {kind}: expected a kserve.Model, or a list of them")
            _initialized(one, target)
        return model

    return make


def _initialized(model: Any, target: str) -> Any:
    if not hasattr(model, "required_response_headers"):  # an attribute that only kserve.Model.__init__ sets
        raise CannotStart(
            f"{target} is not initialized: its class {type(model).__name__} has an __init__ without "
            "super().__init__(name); expected that as its first line"
        )
    return model


def _said(error: BaseException) -> str:
    """`KeyError: 'x'` in one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, ImportError):
        text = re.sub(r" \((/.*|unknown location)\)$", "", text)  # where the other module lies
    return ": ".join(filter(None, (type(error).__name__, " ".join(text.split()))))


def _place(error: BaseException, module: str) -> str:
    """` (file:line)`, the last in the author's own code; empty where the error never came by there."""
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_authors(frame, module)
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        places.append((error.filename, error.lineno))
    if not places:
        return ""
    file, line = places[-1]
    with contextlib.suppress(ValueError):
        file = str(Path(file).relative_to(Path.cwd()))
    return f" ({file}:{line})"


def _is_authors(frame: FrameType, module: str) -> bool:
    """Whether it is of the target's own package, or of what lies beside it: not ours, and no library's."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    file = Path(frame.f_code.co_filename)
    if package == "kservekit" or file.is_relative_to(Path(__file__).parent) or not file.is_absolute():
        return False
    if package == module.partition(".")[0]:
        return True
    library = {"site-packages", "dist-packages"} & set(file.parts)
    return not library and not file.is_relative_to(sysconfig.get_path("stdlib"))
