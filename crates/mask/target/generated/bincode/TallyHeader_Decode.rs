impl < __Context > :: bincode :: Decode < __Context > for TallyHeader
{
    fn decode < __D : :: bincode :: de :: Decoder < Context = __Context > >
    (decoder : & mut __D) ->core :: result :: Result < Self, :: bincode ::
    error :: DecodeError >
    {
        core :: result :: Result ::
        Ok(Self
        {
            model : :: bincode :: Decode :: decode(decoder) ?, layout : ::
            bincode :: Decode :: decode(decoder) ?, group : :: bincode ::
            Decode :: decode(decoder) ?, sparsity : :: bincode :: Decode ::
            decode(decoder) ?, members : :: bincode :: Decode ::
            decode(decoder) ?, mask_root : :: bincode :: Decode ::
            decode(decoder) ?,
        })
    }
} impl < '__de, __Context > :: bincode :: BorrowDecode < '__de, __Context >
for TallyHeader
{
    fn borrow_decode < __D : :: bincode :: de :: BorrowDecoder < '__de,
    Context = __Context > > (decoder : & mut __D) ->core :: result :: Result <
    Self, :: bincode :: error :: DecodeError >
    {
        core :: result :: Result ::
        Ok(Self
        {
            model : :: bincode :: BorrowDecode ::< '_, __Context >::
            borrow_decode(decoder) ?, layout : :: bincode :: BorrowDecode ::<
            '_, __Context >:: borrow_decode(decoder) ?, group : :: bincode ::
            BorrowDecode ::< '_, __Context >:: borrow_decode(decoder) ?,
            sparsity : :: bincode :: BorrowDecode ::< '_, __Context >::
            borrow_decode(decoder) ?, members : :: bincode :: BorrowDecode ::<
            '_, __Context >:: borrow_decode(decoder) ?, mask_root : :: bincode
            :: BorrowDecode ::< '_, __Context >:: borrow_decode(decoder) ?,
        })
    }
}