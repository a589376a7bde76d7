# SPDX-License-Identifier: Apache-2.0
"""From a URL to a stream of bytes, and from backend errors to ours; knows nothing of the protocol."""
