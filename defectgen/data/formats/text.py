"""JSON and XML of label files as what they hold, whatever is in them, and names that text can hold."""

from __future__ import annotations

import json
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from defectgen.data.annotations import Fault


def json_content(text: str, remedy: str) -> Any:
    """What a JSON text holds.

    Raises:
        Fault: it is none, or none that can be held.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Fault(f"is no valid JSON ({error.msg} at line {error.lineno})", remedy) from None
    except RecursionError:
        raise Fault("is no JSON that can be read (too many brackets in each other)", remedy) from None
    except ValueError:
        raise Fault("is no JSON that can be read (a number of thousands of digits)", remedy) from None


def xml_root(text: str | bytes, remedy: str) -> Any:
    """The root element of an XML text.

    Raises:
        Fault: it is none, or has entities, or an encoding that is not known.
    """
    try:
        return fromstring(text)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise Fault(f"is no valid XML ({error})", remedy) from None


def is_utf8(name: str) -> bool:
    """Whether text can hold a name: other bytes come from a disk, and from JSON, as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in name)
