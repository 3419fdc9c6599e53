from fvae_nnunet.ct.boxes import grown


def test_grown_boxes_stay_in_the_volume():
    box = (slice(1, 3), slice(5, 6), slice(7, 9))
    assert grown(box, (2, 1, 3), (10, 7, 10)) == (slice(0, 5), slice(4, 7), slice(4, 10))
