"""Other people's simulators behind our contract, one small file each."""
