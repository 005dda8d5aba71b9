"""Methods as values, a file each; `resolve` makes one from text, such as "ucpo(tau=0.5)" or a dotted path.

Every function in these files that returns a `Method` is a name of this package: a new method is a new file.
"""

from qempo_jax.methods.group_loss import group_loss as group_loss
from qempo_jax.methods.method import Method as Method
from qempo_jax.methods.method import Prices as Prices
from qempo_jax.methods.method import Terms as Terms
from qempo_jax.methods.resolve import resolve as resolve
from qempo_jax.methods.resolve import table as table

globals().update(table())
