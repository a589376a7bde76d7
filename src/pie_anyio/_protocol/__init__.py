# SPDX-License-Identifier: Apache-2.0
"""The Pie wire protocol without I/O: bytes and commands in, bytes and events out.

Nothing in here knows an event loop, a socket, a clock or a source of randomness, so every interleaving of calls, every
way of cutting the byte stream and every late reply can be tried by plain function calls.
"""
