from fvae_nnunet.errors import some_of


def test_a_long_list_ends_with_how_many_more_there_are():
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of(["a", "b", "c", "d"], 2, "\n") == "a\nb\nand 2 more"
    assert some_of([], 2) == ""
