"""What other programs write into their pictures, turned into infotexts. One file a program; start in programs.py."""
