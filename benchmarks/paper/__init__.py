"""The paper's Figures 3 to 11 and Tables 1 and 2, trained anew by one command; see docs/paper.md."""
