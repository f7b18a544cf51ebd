impl < __Context > :: bincode :: Decode < __Context > for VoteHeader
{
    fn decode < __D : :: bincode :: de :: Decoder < Context = __Context > >
    (decoder : & mut __D) ->core :: result :: Result < Self, :: bincode ::
    error :: DecodeError >
    {
        core :: result :: Result ::
        Ok(Self
        {
            model : :: bincode :: Decode :: decode(decoder) ?, layout : ::
            bincode :: Decode :: decode(decoder) ?, pruner : :: bincode ::
            Decode :: decode(decoder) ?, group : :: bincode :: Decode ::
            decode(decoder) ?, sparsity : :: bincode :: Decode ::
            decode(decoder) ?, samples : :: bincode :: Decode ::
            decode(decoder) ?, sequence_tokens : :: bincode :: Decode ::
            decode(decoder) ?,
        })
    }
} impl < '__de, __Context > :: bincode :: BorrowDecode < '__de, __Context >
for VoteHeader
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
            '_, __Context >:: borrow_decode(decoder) ?, pruner : :: bincode ::
            BorrowDecode ::< '_, __Context >:: borrow_decode(decoder) ?, group
            : :: bincode :: BorrowDecode ::< '_, __Context >::
            borrow_decode(decoder) ?, sparsity : :: bincode :: BorrowDecode
            ::< '_, __Context >:: borrow_decode(decoder) ?, samples : ::
            bincode :: BorrowDecode ::< '_, __Context >::
            borrow_decode(decoder) ?, sequence_tokens : :: bincode ::
            BorrowDecode ::< '_, __Context >:: borrow_decode(decoder) ?,
        })
    }
}