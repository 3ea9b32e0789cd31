"""Reward models: judges that write (SFT, SimPO) and scalar heads (Bradley-Terry), on long prompts."""
