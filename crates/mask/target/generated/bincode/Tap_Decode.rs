impl < __Context > :: bincode :: Decode < __Context > for Tap
{
    fn decode < __D : :: bincode :: de :: Decoder < Context = __Context > >
    (decoder : & mut __D) ->core :: result :: Result < Self, :: bincode ::
    error :: DecodeError >
    {
        let variant_index = < u32 as :: bincode :: Decode ::< __D :: Context
        >>:: decode(decoder) ?; match variant_index
        {
            0u32 =>core :: result :: Result :: Ok(Self ::AttentionInput {}),
            1u32 =>core :: result :: Result :: Ok(Self ::AttentionOutput {}),
            2u32 =>core :: result :: Result :: Ok(Self ::MlpInput {}), 3u32
            =>core :: result :: Result :: Ok(Self ::MlpOutput {}), variant
            =>core :: result :: Result ::
            Err(:: bincode :: error :: DecodeError :: UnexpectedVariant
            {
                found : variant, type_name : "Tap", allowed : &:: bincode ::
                error :: AllowedEnumVariants :: Range { min: 0, max: 3 }
            })
        }
    }
} impl < '__de, __Context > :: bincode :: BorrowDecode < '__de, __Context >
for Tap
{
    fn borrow_decode < __D : :: bincode :: de :: BorrowDecoder < '__de,
    Context = __Context > > (decoder : & mut __D) ->core :: result :: Result <
    Self, :: bincode :: error :: DecodeError >
    {
        let variant_index = < u32 as :: bincode :: Decode ::< __D :: Context
        >>:: decode(decoder) ?; match variant_index
        {
            0u32 =>core :: result :: Result :: Ok(Self ::AttentionInput {}),
            1u32 =>core :: result :: Result :: Ok(Self ::AttentionOutput {}),
            2u32 =>core :: result :: Result :: Ok(Self ::MlpInput {}), 3u32
            =>core :: result :: Result :: Ok(Self ::MlpOutput {}), variant
            =>core :: result :: Result ::
            Err(:: bincode :: error :: DecodeError :: UnexpectedVariant
            {
                found : variant, type_name : "Tap", allowed : &:: bincode ::
                error :: AllowedEnumVariants :: Range { min: 0, max: 3 }
            })
        }
    }
}