"""The kinds of weights that are held otherwise than as floats; each answers for itself.

| of a kind | what |
|---|---|
| `pack(floats)`, `empty(*shape)`, `of(values, scale, rows)` | from floats; unset; of tensors |
| `floats()`, `blocks(dtype)` | back; some rows at a time, padded ones included |
| `at(expert)`, `store(part, row)` | one matrix of a stack; rows into their place |
| `kind`, `rows` | the name in keys and in a config; rows without padding |
| `product(x, others, ...)` | rows times matrices, in inference, see ops/linear.py |
| `experts(x, others, ...)` | the SwiGLU of experts at once, or None, see ops/linear.py |
| `joins` | products of several matrices with the same rows are one |
| `through_float32` | an expert's rows stay float32 from one product to the next |
"""

from __future__ import annotations

from vl2.ops.float8 import Float8Weight
from vl2.ops.int4 import Int4Weight
from vl2.ops.int8 import Int8Weight

Weight = Int8Weight | Float8Weight | Int4Weight
KINDS: dict[str, type[Weight]] = {
    "int8": Int8Weight,
    "float8": Float8Weight,
    "int4": Int4Weight,
}
"""By name, most exact first."""
