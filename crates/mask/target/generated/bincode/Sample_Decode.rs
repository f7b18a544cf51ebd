impl < __Context > :: bincode :: Decode < __Context > for Sample
{
    fn decode < __D : :: bincode :: de :: Decoder < Context = __Context > >
    (decoder : & mut __D) ->core :: result :: Result < Self, :: bincode ::
    error :: DecodeError >
    {
        core :: result :: Result ::
        Ok(Self
        {
            digest : :: bincode :: Decode :: decode(decoder) ?, group : ::
            bincode :: Decode :: decode(decoder) ?, sparsity : :: bincode ::
            Decode :: decode(decoder) ?, names : :: bincode :: Decode ::
            decode(decoder) ?, number : :: bincode :: Decode ::
            decode(decoder) ?,
        })
    }
} impl < '__de, __Context > :: bincode :: BorrowDecode < '__de, __Context >
for Sample
{
    fn borrow_decode < __D : :: bincode :: de :: BorrowDecoder < '__de,
    Context = __Context > > (decoder : & mut __D) ->core :: result :: Result <
    Self, :: bincode :: error :: DecodeError >
    {
        core :: result :: Result ::
        Ok(Self
        {
            digest : :: bincode :: BorrowDecode ::< '_, __Context >::
            borrow_decode(decoder) ?, group : :: bincode :: BorrowDecode ::<
            '_, __Context >:: borrow_decode(decoder) ?, sparsity : :: bincode
            :: BorrowDecode ::< '_, __Context >:: borrow_decode(decoder) ?,
            names : :: bincode :: BorrowDecode ::< '_, __Context >::
            borrow_decode(decoder) ?, number : :: bincode :: BorrowDecode ::<
            '_, __Context >:: borrow_decode(decoder) ?,
        })
    }
}