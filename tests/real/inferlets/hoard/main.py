# SPDX-License-Identifier: Apache-2.0
"""Fill part of the key/value pool and hold it, so that the engine has no room for others.

Reserving pages is not enough: the engine counts what a forward pass has written.
"""

import time

from inferlet import session
from inferlet.eta import *


async def main(input):
    """Run one forward pass over "tokens" tokens, say so, and keep its pages for "seconds"."""
    count = input.get("tokens", 16)
    size = kv_page_size()
    used = -(-count // size)
    pages, state, pipe = WorkingSet(), RsWorkingSet(), Pipeline()
    pages.reserve(used)
    done = Channel([1], dtype.i32)
    forward = ForwardPass()
    forward.embed(Channel.from_([65] * count, dtype.i32), Channel.from_([0, count], dtype.u32))
    forward.bind_state(
        pages,
        KvGeometry(
            kv_len=Channel.from_([count], dtype.u32),
            pages=Channel.from_(list(range(used)), dtype.u32),
            page_indptr=Channel.from_([0, used], dtype.u32),
            w_slot=Channel.from_([i // size for i in range(count)], dtype.u32),
            w_off=Channel.from_([i % size for i in range(count)], dtype.u32),
            positions=Channel.from_(list(range(count)), dtype.u32),
        ),
        [state],
    )

    @forward.epilogue
    def _():
        done.put(reshape(reduce_argmax(intrinsics.logits()), [1]))

    forward.submit(pipe)
    await done.take_scalar()
    session.send("holding")
    time.sleep(input.get("seconds", 1))
    pipe.close()
    return {"tokens": count, "held": [pages is not None, state is not None]}
