"""The rules of money: pure, integer, and small enough to read in one sitting."""
