# SPDX-License-Identifier: Apache-2.0
"""The command line, ``pie-anyio``. It uses the public interface of the package and nothing else.

Exit codes: 0 all runs returned, 1 some failed, 2 usage, 3 no connection or no login, 130 interrupted.
"""
