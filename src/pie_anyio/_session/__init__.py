# SPDX-License-Identifier: Apache-2.0
"""The only layer that knows both the protocol core and the stream: tasks, routing, lifetimes."""
