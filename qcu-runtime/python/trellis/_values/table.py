"""Tables as plain text, for terminals and logs."""

from __future__ import annotations


def format_table(
    header: list[str], rows: list[list[str]], gap_after: int | None = None, width: int | None = None
) -> str:
    """A table with aligned columns: numbers to the right, text to the left. It has no border, so it can be pasted.

    `width` is the width of the terminal. To fit it, long cells are cut, then columns in the middle are left out.
    `gap_after` is the number of rows after which "…" marks left-out rows.
    """
    right = [bool(rows) and all(_numeric(r[i]) for r in rows) for i in range(len(header))]
    widths = [max([len(h), *(len(r[i]) for r in rows)]) for i, h in enumerate(header)]
    if width is not None:
        widths = _narrowed(widths, right, width)
        if out := _left_out(widths, width):
            first, last = out
            header, right, widths, *rows = (
                [*row[:first], gap, *row[last:]]
                for row, gap in [(header, "…"), (right, False), (widths, 1), *((row, "…") for row in rows)]
            )
        header, rows = _cut(header, widths), [_cut(row, widths) for row in rows]

    def line(cells: list[str]) -> str:
        aligned = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    lines = [line(header), *(line(row) for row in rows)]
    if gap_after is not None:
        lines.insert(gap_after + 1, "…")
    return "\n".join(lines)


# cells are not cut below this width
_CELL_MIN = 12


def _line_width(widths: list[int]) -> int:
    return sum(widths) + 2 * max(0, len(widths) - 1)


def _narrowed(widths: list[int], right: list[bool], width: int) -> list[int]:
    """Widths after cutting the widest columns of text. A number is shown whole or not at all."""
    widths = list(widths)
    while _line_width(widths) > width:
        text = [i for i, w in enumerate(widths) if w > _CELL_MIN and not right[i]]
        if not text:
            break
        widest = max(text, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _left_out(widths: list[int], width: int) -> tuple[int, int] | None:
    """The range of columns [first, last) in the middle to leave out; None if a line fits."""
    if _line_width(widths) <= width:
        return None
    first, last = (len(widths) + 1) // 2, (len(widths) + 1) // 2 + 1
    while _line_width([*widths[:first], 1, *widths[last:]]) > width and (first > 1 or last < len(widths)):
        if last < len(widths) and (len(widths) - last >= first or first == 1):
            last += 1
        else:
            first -= 1
    return first, min(last, len(widths))


def _cut(cells: list[str], widths: list[int]) -> list[str]:
    return [c if len(c) <= w else c[: w - 1] + "…" for c, w in zip(cells, widths, strict=True)]


def _numeric(text: str) -> bool:
    # a date starts with a digit, too
    is_number = text.lstrip("-")[:1].isdigit() and text[4:5] != "-"
    return is_number or text in ("", "-", "NaN", "inf", "-inf")
