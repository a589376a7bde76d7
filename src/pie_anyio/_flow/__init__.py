# SPDX-License-Identifier: Apache-2.0
"""Waiting, buffering and limiting on anyio primitives; knows nothing of the protocol."""
